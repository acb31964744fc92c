"""Search of settings on validation events: SLIM's λ and β, and networks' declared spaces."""

from __future__ import annotations

import itertools
import json
import logging
import time
from functools import partial
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.inputs import bounded_batches, open_catalogue, read_histories
from pipelines.job import Job, Stage
from pipelines.models import open_weights, slim_options
from pipelines.networks import newest_export, training_job
from pipelines.rank import require_targets
from recs.config import NETWORKS, Config, ConfigError
from recs.data.histories import positives
from recs.evaluation.ranks import sum_ranks
from recs.ranking.catalogue import ItemCatalogue
from recs.ranking.jobs import rank
from recs.ranking.protocols import RankingProtocol
from recs.schema import part
from recs.slim.fit import (
    NotConverged,
    item_weights,
    prepare,
    require_converged,
    solve,
    write_weights,
)
from recs.storage import join, remove_tree
from recs.training.dataset import open_training_set
from recs.training.launch import launch
from recs.training.space import Tune, Value

log = logging.getLogger("recs")


def run_tune_slim(job: Job) -> None:
    """Fit every (λ, β) of the grid on training events and measure it on validation events.

    From the strongest regularisation to the weakest, each trial starts from the weights of the one
    before: the solution is the same, the way to it shorter. One that does not converge counts as 0.

    Raises
    ------
    LakeError
        If nothing is held out to measure trials by.
    NotConverged
        If no trial has converged.
    """
    settings, grid = job.config.slim, job.config.tune_slim
    require_targets(job)
    num_items = job.num_items()
    problem = prepare(
        positives(job.read("interactions"), job.fit_splits, settings.values),
        join(job.work_folder, "slim"),
        num_users=job.num_users(),
        num_items=num_items,
        memory_budget_bytes=settings.memory_budget_mb * 2**20,
        max_neighbours=settings.max_neighbours,
    )
    catalogue = open_catalogue(job)
    users = read_histories(job, settings.values, held_out=job.config.evaluate.split)
    users = job.persist(users)
    trials: list[dict[str, Any]] = []
    failures: list[str] = []
    warm = None
    for number, (l1, l2) in enumerate(
        itertools.product(sorted(grid.l1, reverse=True), sorted(grid.l2, reverse=True))
    ):
        started = time.monotonic()
        folder = join(job.work_folder, f"trial-{number}")
        fits = solve(
            job.spark,
            problem,
            slim_options(settings)._replace(l1=l1, l2=l2, warm_tolerance=None),
            warm_start=warm,
        ).persist()
        value, measured, nonzeros, failure = 0.0, 0, None, None
        try:
            require_converged(fits)
        except NotConverged as error:
            failure = str(error)
            failures.append(f"l1={l1}, l2={l2}: {failure}")
        else:
            weights = item_weights(fits)
            warm = write_weights(weights, join(folder, "warm"), num_items=num_items)
            value, measured = _measure(job, users, weights, folder, catalogue)
            nonzeros = fits.agg(F.sum("nonzeros")).collect()[0][0]
        fits.unpersist()
        trials.append(
            {
                "model": "slim",
                "settings": {"l1": str(l1), "l2": str(l2), "values": settings.values},
                "protocol": grid.protocol,
                "split": job.config.evaluate.split,
                "metric": grid.metric,
                "k": grid.k,
                "value": value,
                "users": measured,
                "nonzeros": nonzeros,
                "seconds": time.monotonic() - started,
            }
        )
        log.info("trial", extra={"l1": l1, "l2": l2, grid.metric: value, "failure": failure})
    if len(failures) == len(trials):
        raise NotConverged(f"no trial of slim has converged; the first, {failures[0]}")
    best = min(trials, key=lambda trial: (-trial["value"], json.dumps(trial["settings"])))
    job.run.details |= {f"slim.{key}": best["settings"][key] for key in ("l1", "l2")}
    job.write_rows("trials", trials)


def _measure(
    job: Job, users: DataFrame, weights: DataFrame, folder: str, catalogue: ItemCatalogue
) -> tuple[float, int]:
    """Return the grid's metric on the held-out targets, and the users it is over."""
    grid = job.config.tune_slim
    model = open_weights(weights, join(folder, "weights"), job.num_items())
    protocol = RankingProtocol(grid.protocol, seed=job.config.seed)
    ranks = rank(users, [model], [protocol], catalogue=catalogue)
    # Read twice: for the groups there are, and by user.
    ranks = ranks.withColumn("split", F.lit(job.config.evaluate.split)).persist()
    with bounded_batches(job.spark):
        totals = sum_ranks(ranks, [grid.k], ties=job.config.evaluate.ties, replicates=1, seed=0)
    ranks.unpersist()
    wanted = (F.col("slice") == "all") & (F.col("metric") == grid.metric) & (F.col("k") == grid.k)
    row = totals.metrics(job.spark).where(wanted).collect()[0]
    return row["value"], row["users"]


def check_search(config: Config, name: str) -> None:
    """Refuse a search of a model's settings that cannot be.

    Raises
    ------
    ConfigError
        If nothing is held out to measure trials by, or as :func:`space_of`.
    """
    if config.mode == "serve":
        raise ConfigError("mode serve holds nothing out; search with mode=backtest")
    if not config.export.hold_out:
        raise ConfigError(
            "export.hold_out: false leaves no validation events to measure trials by: search with "
            "export.hold_out=true"
        )
    if name in NETWORKS:
        space_of(config, name)


def space_of(config: Config, name: str) -> Tune:
    """Return what is searched of a network.

    Raises
    ------
    ConfigError
        If it declares no space, the space has a setting that is not there or a value that cannot
        be, or Optuna is missing.
    """
    try:
        from recs.training import search
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the search needs {error.name}: install recs with its extra 'tune'"
        ) from error
    key, tuned = f"networks.{name}.tune", config.networks[name]
    if tuned.tune is None:
        raise ConfigError(
            f"{key} declares no space: give one, as {key}.space={{model.dim: [64, 128]}}"
        )
    try:
        search.check_space(name, tuned.network, tuned.tune, config.export.lanes)
    except ValueError as error:
        raise ConfigError(f"key '{key}.space': {error}") from error
    return tuned.tune


def run_tune_network(job: Job) -> None:
    """Search the declared space of a network on the newest training set.

    Each trial is a training of its own, measured as training measures itself. A run that was killed
    goes on with the trials that are left, if it is started again with its run_id.
    """
    assert job.model is not None
    job.write_rows("trials", _search(job, job.model, space_of(job.config, job.model)))


def _search(job: Job, name: str, tune: Tune) -> list[dict[str, Any]]:
    """Return the trials of a network, best first, as rows of ``trials``."""
    from recs.training.search import search

    folder = job.lake.location.study(job.config.mode, name, job.run.run_id)
    training = training_job(job, name, newest_export(job), folder)
    manifest = open_training_set(training.training_set).manifest
    measured = sum(file.rows for file in manifest.parts["validation"])
    if not measured:
        raise ConfigError(
            f"training set {training.training_set} has no validation events to measure trials by: "
            "choose a split that holds some out"
        )
    best, *_ = trials = search(training, tune, partial(launch, job.spark))
    trained = training.model_copy(update={"folder": best.folder})
    job.run.after_commit(lambda: remove_tree(trained.checkpoints))
    job.run.details["model"] = join(best.folder, "model")
    for key, value in best.settings.items():
        job.run.details[f"networks.{name}.{key}"] = _as_override(value)
    validation = training.network.training.validation
    return [
        {
            "model": name,
            "settings": {key: _as_override(value) for key, value in trial.settings.items()},
            "protocol": "full",
            "split": "validation",
            "metric": validation.metric,
            "k": validation.k,
            "value": trial.value,
            "users": measured + manifest.given_nothing,
            "nonzeros": None,
            "seconds": trial.seconds,
        }
        for trial in trials
    ]


def _as_override(value: Value) -> str:
    """Return a value as ``key=value`` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


TUNE_SLIM = Stage(
    "tune",
    "Search SLIM's l1 and l2 on validation events.",
    reads=("interactions", "catalogue", "user_ids", "item_ids"),
    writes=(part("trials", "slim"),),
    settings=(
        "mode",
        "seed",
        "events.types",
        "split",
        "slim",
        "recommend.exclude_seen",
        "evaluate",
        "tune_slim",
    ),
    work=run_tune_slim,
    model="slim",
)


def tune_stage(name: str) -> Stage:
    """Return the stage that searches a model's settings."""
    if name == "slim":
        return TUNE_SLIM
    return Stage(
        "tune",
        "Search a network's settings on validation events.",
        reads=("training_set",),
        writes=(part("trials", name),),
        settings=(
            "mode",
            "seed",
            "export.hold_out",
            "export.lanes",
            f"networks.{name}",
            "recommend.exclude_seen",
        ),
        work=run_tune_network,
        model=name,
    )
