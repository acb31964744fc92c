"""All models at one moment: metrics, paired differences, and the gates that they are held to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.job import Job, Stage
from pipelines.models import MODELS
from pipelines.rank import RANK_SETTINGS, RANKED
from recs import readers
from recs.config import Config, ConfigError, Gate
from recs.errors import UserError
from recs.evaluation.ranks import sum_ranks
from recs.lake import Lake, LakeError
from recs.ledger import Finished, Ledger
from recs.schema import METRICS_OF_LISTS, part

_COMPARED = "compared"  # a detail of runs: the run of the stage rank of each model


class GateFailed(UserError):
    """A metric lies below what the configuration asks for."""

    exit_code = 3


def run_compare(job: Job) -> None:
    """Hold the models' ranks to be of one kind, and write their differences from the baseline."""
    settings = job.config.evaluate
    ranked = {name: _ranked(job, name) for name in job.config.models}
    job.run.details |= {f"{_COMPARED}.{name}": run.run_id for name, run in ranked.items()}
    if settings.baseline not in ranked:
        return
    ranks = [job.read(part("ranks", name)) for name in ranked]
    totals = sum_ranks(
        reduce(DataFrame.unionByName, ranks),
        settings.ks,
        ties=settings.ties,
        replicates=settings.bootstrap,
        seed=job.config.seed,
    )
    differences = totals.differences(job.spark, settings.baseline)
    job.write("metric_differences", differences, "append")


def _ranked(job: Job, name: str) -> Finished:
    """Return the run that has ranked by a model as it is now.

    Raises
    ------
    LakeError
        If there is none, or it has ranked other events, in another way, or by an earlier fit.
    """
    ranked = job.run.newest("rank", name)
    if ranked is None or ranked.details[RANKED] != MODELS[name].version(job):
        raise LakeError(
            f"the ranks of {name} are not of its last fit: run the stage rank/{name} first"
        )
    job.require_settings("rank", name, RANK_SETTINGS)
    job.run.require_one_generation("interactions", part("ranks", name))
    return ranked


def compare_stage(models: Sequence[str]) -> Stage:
    """Return the stage that compares models."""
    return Stage(
        "compare",
        "Compare the models by what rank has measured, and hold them to the gates.",
        reads=(
            "interactions",
            *(part(table, name) for name in models for table in ("ranks", "metrics")),
        ),
        writes=("metric_differences",),
        settings=("mode", "seed", "models", "evaluate"),
        work=run_compare,
    )


def read_metrics(lake: Lake, compared: Finished) -> list[dict[str, Any]]:
    """Return the metrics over all users of the models that a run has compared."""
    runs = {
        key.removeprefix(f"{_COMPARED}."): run_id
        for key, run_id in compared.details.items()
        if key.startswith(f"{_COMPARED}.")
    }
    ledger, names = Ledger(lake), ["protocol", "metric", "k", "model"]
    found = []
    for name, run_id in runs.items():
        ranked = ledger.newest("rank", name, run_id=run_id)
        assert ranked is not None
        rows = readers.written(lake, ranked, part("metrics", name))
        found.append(rows.where((F.col("run_id") == run_id) & (F.col("slice") == "all")))
    columns = ["model", "protocol", "split", "metric", "k", "value", "lower", "upper", "users"]
    ordered = reduce(DataFrame.unionByName, found).orderBy(*names)
    return [row.asDict() for row in ordered.select(*columns).collect()]


def require_measured(config: Config) -> None:
    """Refuse gates on what an evaluation by these settings does not measure.

    Raises
    ------
    ConfigError
        With the gate and the setting.
    """
    settings = config.evaluate
    for gate in settings.gates:
        asked = [
            ("models", gate.model, gate.model in config.models),
            ("evaluate.ks", gate.k, gate.k is None or gate.k in settings.ks),
        ]
        if gate.metric not in METRICS_OF_LISTS:  # which are measured under any protocol
            asked.append(("evaluate.protocols", gate.protocol, gate.protocol in settings.protocols))
        for key, value, measured in asked:
            if not measured:
                raise ConfigError(
                    f"evaluate.gates: {gate.label} is not measured: add {value} to {key}, or leave "
                    "out the gate"
                )


def check_gates(config: Config, metrics: list[dict[str, object]]) -> None:
    """Hold the metrics against the gates of the configuration.

    Raises
    ------
    GateFailed
        Naming each metric that lies below its gate, or is not measured.
    """
    failed = []
    for gate in config.evaluate.gates:
        value = _measured(gate, metrics)
        if value is None:
            failed.append(f"{gate.label} was not measured")
        elif not value >= gate.at_least:  # no number passes none
            failed.append(f"{gate.label} is {value:.4f}, below {gate.at_least:.4f}")
    if failed:
        raise GateFailed("; ".join(failed))


def _measured(gate: Gate, metrics: list[dict[str, object]]) -> float | None:
    for row in metrics:
        if all(row[key] == getattr(gate, key) for key in ("model", "protocol", "metric", "k")):
            value = row["value"]
            return None if value is None else float(value)  # type: ignore[arg-type]
    return None
