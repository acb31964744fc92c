"""The whole pipeline of a configuration, and single stages of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import functions as F

from pipelines.compare import compare_stage, read_metrics, require_measured
from pipelines.examples import NEGATIVES, POSITIVES, SEQUENCES
from pipelines.graph import in_order
from pipelines.ingest import INGEST
from pipelines.job import Stage, run_stage
from pipelines.models import MODELS
from pipelines.networks import EXPORT, check_networks, networks_of
from pipelines.prepare import SPLIT, VOCABULARY
from pipelines.progress import Progress
from pipelines.rank import rank_stage
from pipelines.recommend import FALLBACK, recommend_stage
from pipelines.sequentiality import sequentiality_stage
from pipelines.tune import check_search, tune_stage
from pipelines.upkeep import UPKEEP
from recs import readers
from recs.config import NETWORKS, Config, ConfigError
from recs.lake import Lake, Location
from recs.ledger import Finished
from recs.runs import new_run_id
from recs.schema import MODES, part, table_of
from recs.session import get_session

log = logging.getLogger("recs")

#: Stages of all models, which those of each follow.
_PREPARE = (INGEST, VOCABULARY, SPLIT, SEQUENCES, POSITIVES, NEGATIVES, EXPORT)


def all_stages(config: Config) -> list[Stage]:
    """Return every stage that there is for the models of a configuration, and the fallback.

    Each comes after those whose tables it reads.
    """
    models = [MODELS[name] for name in dict.fromkeys((FALLBACK.name, *config.models))]
    stages = [
        *_PREPARE,
        *(stage for model in models for stage in model.fits),
        *map(recommend_stage, models),
        *map(rank_stage, models),
        compare_stage(config.models),
        *(tune_stage(name) for name in config.models if name in ("slim", *NETWORKS)),
        sequentiality_stage(config.models),
        UPKEEP,
    ]
    return in_order(stages)


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
    """Return the stages of the whole pipeline, each after those whose tables it reads.

    Popularity is always fitted, as the fallback.
    """
    wanted = [INGEST, VOCABULARY, SPLIT]
    networks = networks_of(config.models)
    if config.sequences is not None or networks:
        wanted += [SEQUENCES]
    if config.negatives is not None or networks:
        wanted += [POSITIVES]
    if config.negatives is not None:
        wanted += [NEGATIVES]
    if networks:
        wanted += [EXPORT]
    models = [MODELS[name] for name in config.models]
    wanted += FALLBACK.fits if FALLBACK not in models else ()
    wanted += [stage for model in models for stage in model.fits]
    wanted += map(recommend_stage, models)
    if config.mode == "backtest":
        wanted += [*map(rank_stage, models), compare_stage(config.models)]
    return in_order(wanted)


def stages_named(config: Config, *names: str) -> list[Stage]:
    """Return stages by their names, in order: ``fit/slim``, or ``fit`` of all that models names.

    Raises
    ------
    ConfigError
        If models names none that has such a stage, or no stage is called so.
    """
    found = all_stages(config)
    chosen = []
    for name in names:
        of_name = [stage for stage in found if stage.name == name]
        of_models = [stage for stage in of_name if stage.model in (None, *config.models)]
        labelled = [stage for stage in found if stage.label == name]
        if not (of_models or labelled):
            raise ConfigError(
                f"none of models {', '.join(config.models)} has a stage {name!r}: the stages are "
                f"{', '.join(stage.label for stage in found)}"
            )
        chosen += of_models or labelled
    return [stage for stage in found if stage in chosen]


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
    names = {stage.name for stage in stages}
    if config.mode == "serve" and names & {"rank", "compare"}:
        raise ConfigError("mode serve holds nothing out; rank and compare with mode=backtest")
    for stage in stages:
        if stage.name == "tune" and stage.model is not None:
            check_search(config, stage.model)
    if "train" in names:
        check_networks(config)
    if "compare" in names:
        require_measured(config)


def run_stages(
    stages: Sequence[Stage], config: Config, lake: Lake, *, take_over: bool = False
) -> Outcome:
    """Run stages in order and return what they did.

    With ``take_over`` they go on in place of other attempts that are at work at them.

    Whether the metrics pass their gates is for the caller to ask, who may show them first: see
    :func:`pipelines.compare.check_gates`.

    Raises
    ------
    recs.lake.LakeError
        If a stage's inputs are missing or another run is in the way.
    recs.config.ConfigError
        As :func:`check`, before anything runs.
    """
    check(stages, config)
    outcome = Outcome(config.run_id or new_run_id())
    print(f"run_id={outcome.run_id} goes on with it, if it is broken off", file=sys.stderr)
    with Progress(lake.spark, outcome.run_id, len(stages)) as progress:
        for stage in stages:
            with progress.stage(stage.label):
                finished = run_stage(stage, lake, config, outcome.run_id, take_over=take_over)
            outcome.finished[stage.label] = finished
            outcome.seconds[stage.label] = round(finished.seconds, 3)
    outcome.tables = readers.write_down(lake)
    if "compare" in outcome.finished:
        outcome.metrics = read_metrics(lake, outcome.finished["compare"])
    return outcome


def list_tables(lake: Lake) -> list[dict[str, Any]]:
    """Return every committed table of both modes with version, rows and meaning."""
    listed = []
    for mode in MODES:
        seen = Lake(lake.spark, lake.location, mode)
        for name, committed in readers.tables(seen).items():
            table = table_of(name)
            if table.scope == "lake" and mode != MODES[0]:
                continue
            listed.append(
                {
                    "table": seen.key(name),
                    **committed,
                    "rows": seen.load(name, committed["version"]).count(),
                    "comment": table.comment,
                }
            )
    return listed


def read_trials(lake: Lake, search: Finished) -> list[dict[str, Any]]:
    """Return the trials of a search, best first."""
    assert search.part is not None
    rows = readers.written(lake, search, part("trials", search.part)).drop("run_id")
    ordered = rows.orderBy(F.desc("value"), F.to_json("settings"))
    return [row.asDict() for row in ordered.collect()]
