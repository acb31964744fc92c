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
from recs.ledger import Ledger
from recs.runs import MissingTable
from recs.schema import TABLES, table_of
from recs.storage import join, read_file, write_file

log = logging.getLogger("recs")


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
    versions = Ledger(lake).versions()
    found = [name for name in names(lake, versions) if table in (name, table_of(name).name)]
    if not found:
        raise MissingTable(f"no finished run has written {table} in mode {lake.mode}")
    parts = [lake.load(name, versions[lake.key(name)]) for name in found]
    return reduce(DataFrame.unionByName, parts)


def tables(lake: Lake) -> dict[str, dict[str, Any]]:
    """Return path (or full name) and committed version of each table and part, by name."""
    versions = Ledger(lake).versions()
    return {
        name: {"path": lake.address(name), "version": versions[lake.key(name)]}
        for name in names(lake, versions)
    }


def write_down(lake: Lake) -> None:
    """Write for readers without recs what is committed; what is there of a later run stays."""
    ledger = Ledger(lake)
    rows = ledger.rows()
    if not rows:
        return
    if lake.location.catalog is not None:
        _replace_views(lake, ledger.versions(rows))
    path = join(lake.location.root, f"tables-{lake.mode}.json")
    there = json.loads(read_file(path) or b"{}")
    sequence = rows[-1]["sequence"]
    if there.get("sequence", -1) < sequence:
        document = {"sequence": sequence, "mode": lake.mode, "tables": tables(lake)}
        write_file(path, json.dumps(document, indent=1).encode())


def _replace_views(lake: Lake, versions: Mapping[str, int]) -> None:
    """Make a view of all parts of each table that holds models, at their committed versions."""
    parts: dict[str, list[str]] = {}
    for name in names(lake, versions):
        if table_of(name).scope == "model":
            parts.setdefault(table_of(name).name, []).append(name)
    for table, found in parts.items():
        columns = ", ".join(f"`{column.name}`" for column in TABLES[table].all_columns)
        selects = [
            f"SELECT {columns} FROM {lake.address(name)} VERSION AS OF {versions[lake.key(name)]}"
            for name in found
        ]
        view = lake.location.whole(TABLES[table], lake.mode)
        try:
            lake.spark.sql(f"CREATE OR REPLACE VIEW {view} AS {' UNION ALL '.join(selects)}")
        except PySparkException as error:  # as without the right to make views
            log.warning("view %s is not made: %s", view, error)
