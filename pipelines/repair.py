"""A table whose committed content is lost is made anew."""

from __future__ import annotations

from pipelines.ingest import INGEST
from pipelines.job import Stage, run_stage
from pipelines.run import all_stages
from recs.config import Config, ConfigError
from recs.lake import Lake
from recs.ledger import Finished
from recs.schema import table_of


def repair(name: str, config: Config, lake: Lake, run_id: str) -> Finished:
    """Make a table whole of which files are gone that a run has committed; return the run.

    Of a table that is only ever added to, the rows of runs that did not finish are deleted from
    what is there. Another is made anew by its stage.

    Raises
    ------
    ConfigError
        If no stage of the configuration's models writes such a table.
    """
    writers = [stage for stage in all_stages(config) if name in stage.writes]
    try:
        table = table_of(name)
    except KeyError:
        writers = []
    if not writers:
        known = sorted({table for stage in all_stages(config) for table in stage.writes})
        raise ConfigError(f"no stage writes a table {name!r}: they are {', '.join(known)}")
    if writers[0] is INGEST and not table.grows:
        raise ConfigError(
            f"{name} is made of deliveries that are read once: give the lake another root, and "
            "deliver the raw data again"
        )
    if not table.grows:
        anew = config.model_copy(update={"rebuild": True})
        return run_stage(writers[0], lake, anew, run_id)
    return run_stage(_repair_stage(name, writers[0]), lake, config, run_id)


def _repair_stage(name: str, writer: Stage) -> Stage:
    return Stage(
        "repair",
        "Delete rows that no finished run has written.",
        reads=(),
        writes=(name,),
        settings=(),
        work=lambda job: job.run.keep_finished_rows(name),
        shared=writer.shared,
        model=writer.model,
    )
