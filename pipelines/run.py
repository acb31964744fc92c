"""The whole pipeline of a configuration, and single stages of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import functions as F

from pipelines.evaluate import EVALUATE, require_measured
from pipelines.examples import NEGATIVES, POSITIVES, SEQUENCES
from pipelines.ingest import INGEST
from pipelines.job import Stage, run_stage
from pipelines.models import MODELS
from pipelines.networks import EMBED, EXPORT, TRAIN, check_networks
from pipelines.prepare import SPLIT, VOCABULARY
from pipelines.progress import Progress
from pipelines.recommend import RECOMMEND
from pipelines.sequentiality import SEQUENTIALITY
from pipelines.tune import TUNE_NETWORKS, TUNE_SLIM
from recs.config import Config
from recs.lake import Lake, Location
from recs.runs import Finished, Ledger, new_run_id
from recs.schema import MODES, TABLES
from recs.session import get_session

log = logging.getLogger("recs")

#: Every stage, in the order of the data.
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        INGEST,
        VOCABULARY,
        SPLIT,
        SEQUENCES,
        POSITIVES,
        NEGATIVES,
        EXPORT,
        *(model.fit for model in MODELS.values()),
        EMBED,
        RECOMMEND,
        EVALUATE,
        TUNE_SLIM,
        TUNE_NETWORKS,
        SEQUENTIALITY,
    )
}


@dataclass
class Outcome:
    """What a command did: metrics, the tables at their versions, seconds a stage."""

    run_id: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    #: The run of each stage, now or, where it was not run again, before.
    finished: dict[str, Finished] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the JSON document of the command line."""
        return {
            "run_id": self.run_id,
            "metrics": self.metrics,
            "tables": self.tables,
            "seconds": self.seconds,
        }


def stages_of(config: Config) -> list[Stage]:
    """Return the stages of the whole pipeline: popularity is always fitted, as the fallback."""
    wanted = {INGEST, VOCABULARY, SPLIT, RECOMMEND}
    wanted |= {MODELS[name].fit for name in ("popularity", *config.models)}
    if config.sequences is not None:
        wanted |= {SEQUENCES}
    if config.negatives is not None:
        wanted |= {POSITIVES, NEGATIVES}
    if TRAIN in wanted:
        wanted |= {SEQUENCES, POSITIVES, EXPORT, EMBED}
    if config.mode == "backtest":
        wanted |= {EVALUATE}
    return [stage for stage in STAGES.values() if stage in wanted]


def open_lake(config: Config, *, verbose: bool = False) -> Lake:
    """Start Spark with the configuration's settings and return its lake."""
    spark = get_session(f"recs {config.name}", conf=config.spark, verbose=verbose)
    return Lake(spark, Location(config.root, config.catalog), config.mode)


def check(stages: Sequence[Stage], config: Config) -> None:
    """Refuse what cannot be run, as far as that is told without Spark.

    Raises
    ------
    recs.config.ConfigError
        If stages would read data that is not there, train networks with settings that cannot be,
        or be held to what they do not measure.
    """
    if INGEST in stages:
        config.require_sources()
    if TRAIN in stages:
        check_networks(config)
    if EVALUATE in stages:
        require_measured(config)


def run_stages(stages: Sequence[Stage], config: Config, lake: Lake) -> Outcome:
    """Run stages in order and return what they did.

    Whether the metrics pass their gates is for the caller to ask, who may show them first: see
    :func:`pipelines.evaluate.check_gates`.

    Raises
    ------
    recs.lake.LakeError
        If a stage's inputs are missing or another run is in the way.
    recs.config.ConfigError
        As :func:`check`, before anything runs.
    """
    check(stages, config)
    outcome = Outcome(config.run_id or new_run_id())
    with Progress(lake.spark, outcome.run_id, len(stages)) as progress:
        for stage in stages:
            with progress.stage(stage.name):
                finished = run_stage(stage, lake, config, outcome.run_id)
            outcome.finished[stage.name] = finished
            outcome.seconds[stage.name] = round(finished.seconds, 3)
    outcome.tables = table_versions(lake)
    if EVALUATE in stages:
        outcome.metrics = read_metrics(lake, outcome.finished[EVALUATE.name])
    return outcome


def table_versions(lake: Lake) -> dict[str, dict[str, Any]]:
    """Return the committed tables that the lake's mode sees: path and Delta version."""
    versions = Ledger(lake).versions()
    return {
        name: {"path": lake.address(name), "version": versions[lake.key(name)]}
        for name in TABLES
        if lake.key(name) in versions
    }


def list_tables(lake: Lake) -> list[dict[str, Any]]:
    """Return every committed table of both modes with version, rows and meaning."""
    listed = []
    for mode in MODES:
        seen = Lake(lake.spark, lake.location, mode)
        versions = Ledger(seen).versions()
        for name, table in TABLES.items():
            shared = table.scope == "lake"
            if seen.key(name) not in versions or (shared and mode != MODES[0]):
                continue
            version = versions[seen.key(name)]
            listed.append(
                {
                    "table": seen.key(name),
                    "path": seen.address(name),
                    "version": version,
                    "rows": seen.load(name, version).count(),
                    "comment": table.comment,
                }
            )
    return listed


def read_trials(lake: Lake, search: Finished) -> list[dict[str, Any]]:
    """Return the trials of a search, best first."""
    rows = lake.load("trials", search.outputs[lake.key("trials")]).drop("run_id")
    ordered = rows.orderBy(F.desc("value"), F.to_json("settings"))
    return [row.asDict() for row in ordered.collect()]


def read_metrics(lake: Lake, evaluation: Finished) -> list[dict[str, Any]]:
    """Return the metrics over all users of an evaluation."""
    rows = lake.load("metrics", evaluation.outputs[lake.key("metrics")])
    rows = rows.where(F.col("slice") == "all")
    names = ["model", "protocol", "split", "metric", "k", "value", "lower", "upper", "users"]
    ordered = rows.orderBy("protocol", "metric", "k", "model")
    return [row.asDict() for row in ordered.select(*names).collect()]
