"""What people and programs outside read: every table as committed, models' parts together.

Versions that a run is still writing are passed over by reading Delta at the version that the ledger
names. Here that is one DataFrame; for readers without recs it is written down after every command:
in a catalog as a view a table, else as the file ``tables-MODE.json`` below the lake's root.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import reduce
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from recs.lake import Lake
from recs.ledger import Finished, Ledger
from recs.runs import MissingTable
from recs.schema import TABLES, table_of
from recs.storage import join, read_file, write_file

log = logging.getLogger("recs")

_TRIES = 5


def names(lake: Lake, versions: Mapping[str, int]) -> list[str]:
    """Return the committed tables and parts that a lake's mode sees, in the schema's order.

    ``versions`` are those of the ledger, by key.
    """
    found = []
    for key in versions:
        name = key.removeprefix(f"{lake.mode}/")
        try:
            known = lake.key(name) == key
        except KeyError:  # of the other mode, or of another recs
            continue
        if known:
            found.append(name)
    order = list(TABLES)
    return sorted(found, key=lambda name: (order.index(table_of(name).name), name))


def read(lake: Lake, table: str) -> DataFrame:
    """Return a table as committed; of one that holds models, the rows of all (column ``model``).

    ``table`` may name a part as well, as ``recommendations/slim``.

    Raises
    ------
    MissingTable
        If no finished run has written it.
    """
    found = {
        name: version
        for name, version in _readable(lake).items()
        if table in (name, table_of(name).name)
    }
    if not found:
        raise MissingTable(f"no finished run has written {table} in mode {lake.mode}")
    parts = [lake.load(name, version) for name, version in found.items()]
    return reduce(DataFrame.unionByName, parts)


def written(lake: Lake, run: Finished, name: str) -> DataFrame:
    """Return a table as a finished run has left it; KeyError if it is no output of the run's."""
    return lake.load(name, Ledger(lake).readable(name, run.outputs[lake.key(name)]))


def tables(lake: Lake) -> dict[str, dict[str, Any]]:
    """Return path (or full name) and committed version of each table and part, by name."""
    return {
        name: {"path": lake.address(name), "version": version}
        for name, version in _readable(lake).items()
    }


def _readable(lake: Lake) -> dict[str, int]:
    """Return the version at which to read each committed table and part, by name."""
    ledger = Ledger(lake)
    rows = ledger.rows()
    versions = ledger.versions(rows)
    return {
        name: ledger.readable(name, versions[lake.key(name)], rows)
        for name in names(lake, versions)
    }


def write_down(lake: Lake) -> dict[str, dict[str, Any]]:
    """Write for readers without recs what is committed, and return it as :func:`tables` does.

    What is there of a later run stays.
    """
    committed: dict[str, dict[str, Any]] = {}
    path = join(lake.location.root, f"tables-{lake.mode}.json")
    for _ in range(_TRIES):
        rows = Ledger(lake).rows()
        if not rows:
            break
        committed, sequence = tables(lake), rows[-1]["sequence"]
        if lake.location.catalog is not None:
            _replace_views(lake, committed)
        there = json.loads(read_file(path) or b"{}")
        if there.get("sequence", -1) < sequence:
            document = {"sequence": sequence, "mode": lake.mode, "tables": committed}
            write_file(path, json.dumps(document, indent=1).encode())
        # Of runs that end together, the last to write might have been the first to read.
        if Ledger(lake).rows()[-1]["sequence"] == sequence:
            break
    return committed


def _replace_views(lake: Lake, committed: Mapping[str, Mapping[str, Any]]) -> None:
    """Make a view of all parts of each table that holds models, at their committed versions."""
    parts: dict[str, list[str]] = {}
    for name, found in committed.items():
        if table_of(name).scope == "model":
            of_part = f"{found['path']} VERSION AS OF {found['version']}"
            parts.setdefault(table_of(name).name, []).append(of_part)
    for table, of_parts in parts.items():
        columns = ", ".join(f"`{column.name}`" for column in TABLES[table].all_columns)
        selects = [f"SELECT {columns} FROM {of_part}" for of_part in of_parts]
        view = lake.location.whole(TABLES[table], lake.mode)
        try:
            lake.spark.sql(f"CREATE OR REPLACE VIEW {view} AS {' UNION ALL '.join(selects)}")
        except PySparkException as error:  # as without the right to make views
            log.warning("view %s is not made: %s", view, error)
