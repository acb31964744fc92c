"""``recs check``: whether everything that a configuration needs is there, told a line a thing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyspark.sql import SparkSession

from pipelines.run import check, open_lake, stages_of
from recs.config import Config
from recs.errors import tell
from recs.lake import Lake
from recs.ledger import RUNS, Ledger
from recs.storage import join, read_file, remove_tree, write_file
from recs.usage import versions


class Checked(NamedTuple):
    """What was looked at, whether it is well, and what is there or what to mend."""

    what: str
    well: bool
    told: str


def check_all(config: Config, *, verbose: bool = False) -> Iterator[Checked]:
    """Try what a run needs, in the order in which it needs it, and tell of each.

    What follows from a thing that is not well is not tried: without Spark no table.
    """
    yield _tried("configuration", lambda: _stages(config))
    yield _tried("storage", lambda: _storage(config))
    found: list[Lake] = []

    def spark() -> str:
        found.append(open_lake(config, verbose=verbose))
        session = found[0].spark
        return ", ".join(f"{name} {version}" for name, version in versions(session).items())

    yield _tried("Spark with Delta", spark)
    if found:
        lake = found[0]
        yield _tried("Java", lambda: _java(lake.spark))
        yield _tried("tables", lambda: _tables(lake))
        yield _tried("ledger", lambda: f"{len(Ledger(lake).rows())} runs have ended")


def _tried(what: str, look: Callable[[], str]) -> Checked:
    try:
        return Checked(what, True, look())
    except Exception as error:
        return Checked(what, False, tell(error).message)


def _stages(config: Config) -> str:
    stages = stages_of(config)
    check(stages, config)
    return ", ".join(stage.label for stage in stages)


def _storage(config: Config) -> str:
    folder = join(config.root, "_work", f"check-{uuid.uuid4().hex}")
    file = join(folder, "file")
    try:
        write_file(file, b"recs")
        if read_file(file) != b"recs":
            raise OSError(f"{file} is not read as it was written")
    finally:
        remove_tree(folder)
    return f"{config.root} can be written and read"


def _java(spark: SparkSession) -> str:
    jvm = getattr(spark, "_jvm", None)
    return "of the server" if jvm is None else str(jvm.java.lang.System.getProperty("java.version"))


def _tables(lake: Lake) -> str:
    """Make the ledger if there is none, which takes all the rights that stages need."""
    lake.create(RUNS)
    return f"{lake.address(RUNS)} can be made and read"
