"""Models in the pipeline: how each is fitted, and how its tables become a recommender again.

Each model has stages and parts of tables of its own, so that those of several run side by side.

Networks are entries of :data:`recs.nn.models.MODELS`; another kind of model is one entry of
:data:`MODELS` here, and its name in ``recs.config.MODEL_NAMES``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.job import Job, Stage
from pipelines.networks import (
    embed_stage,
    embedded_version,
    embeddings,
    open_network,
    train_stage,
)
from recs.arrays.matrix import CsrFiles, is_written, write_csr
from recs.config import NETWORKS, ConfigError, Slim
from recs.data import histories
from recs.lake import LakeError
from recs.ranking.popularity import write_popularity
from recs.ranking.scoring import Recommender
from recs.ranking.slim import SlimModel
from recs.schema import part
from recs.slim.fit import fit, item_weights, require_converged
from recs.slim.solver import Options
from recs.storage import folder_name, join, remove_tree

log = logging.getLogger("recs")

#: What decides which events are held out of a backtest.
_SPLIT_SETTINGS = ("seed", "split", "as_of")
#: What SLIM's weights were fitted to, and have to be read with.
_READ_WITH = ("slim.values",)
_WEIGHTS = part("item_weights", "slim")


@dataclass(frozen=True)
class PipelineModel:
    """A model: the stages that fit it, and ``open``, which makes a recommender of its tables.

    Attributes
    ----------
    fits
        Its stages up to the tables that it is opened from, in order.
    tables
        Those tables, by the names of its parts.
    version
        Tells which run fitted it as it is read now.
    values
        Tells what the model reads of a history: whether an item is there, its weight, or the vector
        that the network of this name has made of it.
    """

    name: str
    fits: tuple[Stage, ...]
    tables: tuple[str, ...]
    open: Callable[[Job], Recommender]
    version: Callable[[Job], str]
    values: Callable[[Job], str] = lambda job: "binary"


def _newest_run(model: str, job: Job) -> str:
    fitted = job.run.newest("fit", model)
    if fitted is None:
        raise LakeError(f"{model} has not been fitted: run the stage fit/{model} first")
    return fitted.run_id


def fit_popularity(job: Job) -> None:
    """Count each item's positive training events, of all times or of the last days."""
    days = job.config.popularity.days
    events = job.read("interactions").where(
        F.col("positive") & F.col("split").isin(*job.fit_splits)
    )
    if days is not None:
        latest = events.agg(F.max("timestamp").alias("latest"))  # one row
        if latest.where("latest IS NOT NULL").isEmpty():
            raise ConfigError(
                f"popularity.days={days} needs times, and no event has one: leave it out"
            )
        recent = F.col("timestamp") > F.col("latest") - F.make_dt_interval(days=F.lit(days))
        events = events.join(F.broadcast(latest), recent)
    counts = events.groupBy("item_id").agg(F.count("*").cast("float").alias("score"))
    job.note_splits(job.fit_splits)
    job.write("popularity", counts.withColumn("model", F.lit("popularity")))


def open_popularity(job: Job) -> Recommender:
    """Return the popularity model as fitted."""
    job.require_fitted("fit", "popularity", "popularity")
    counts = job.read(part("popularity", "popularity"))
    return write_popularity(counts, join(job.work_folder, "popularity"), job.num_items())


def fit_slim(job: Job) -> None:
    """Solve SLIM for every item; nothing is written unless all have converged."""
    settings = job.config.slim
    rows = histories.positives(job.read("interactions"), job.fit_splits, settings.values)
    warm = _weights(job) if settings.warm_start and _may_start_from_last(job) else None
    num_items = job.num_items()
    fits = fit(
        rows,
        join(job.work_folder, "slim"),
        slim_options(settings),
        num_users=job.num_users(),
        num_items=num_items,
        memory_budget_bytes=settings.memory_budget_mb * 2**20,
        warm_start=warm,
    ).persist()
    solved = require_converged(fits)
    log.info("slim", extra={"items": num_items, "solved": solved, "warm": warm is not None})
    model = F.lit("slim")
    weights = item_weights(fits).withColumn("model", model)
    made = {"item_weights": weights, "item_fits": fits.withColumn("model", model)}
    job.run.write_all({job.name(table): rows for table, rows in made.items()})
    fits.unpersist()
    job.note_splits(job.fit_splits)
    job.note_settings((*_SPLIT_SETTINGS, *_READ_WITH))
    job.run.after_commit(lambda: _remove_old_weights(job))


def _may_start_from_last(job: Job) -> bool:
    """Tell whether the last weights know of no event that these must not know.

    Items that still fit keep their weights as they are. With another split an event that they know
    may be held out now.
    """
    last = job.run.newest("fit", "slim")
    if last is None or not set(job.splits_of(last)) <= set(job.fit_splits):
        return False
    return job.config.mode == "serve" or not job.other_settings(last, _SPLIT_SETTINGS)


def slim_options(settings: Slim) -> Options:
    """Return the solver's options of ``settings``."""
    return Options(
        l1=settings.l1,
        l2=settings.l2,
        tolerance=settings.tolerance,
        max_iterations=settings.max_iterations,
        warm_tolerance=settings.warm_tolerance if settings.warm_start else None,
        max_neighbours=settings.max_neighbours,
        similarity=settings.similarity,
    )


def open_slim(job: Job) -> Recommender:
    """Return SLIM as fitted: W in files, by neighbour, which the first to ask for them writes."""
    job.require_fitted("fit", "slim", "item_weights")
    job.require_settings("fit", "slim", _READ_WITH)
    weights = _weights(job)
    folder = _weights_folder(job, _newest_run("slim", job))
    if is_written(folder):
        return SlimModel("slim", CsrFiles(folder))
    return open_weights(weights, folder, job.num_items())


def _weights_folder(job: Job, run_id: str) -> str:
    """Return the folder of W as a run has fitted it."""
    return job.lake.location.work(job.config.mode, "weights", folder_name(run_id))


def _remove_old_weights(job: Job) -> None:
    """Remove what was made of all fits but this one, and the one before, which may be read."""
    for run in job.run.finished_runs("fit", "slim")[:-1]:
        remove_tree(_weights_folder(job, run.run_id))


def open_weights(weights: DataFrame, folder: str, num_items: int) -> Recommender:
    """Return SLIM with weights (item_id, neighbour_id, weight) put in files under ``folder``."""
    shape = num_items, num_items
    files = write_csr(
        weights, folder, row="neighbour_id", column="item_id", value="weight", shape=shape
    )
    return SlimModel("slim", files)


def _weights(job: Job) -> DataFrame:
    return job.read(_WEIGHTS).select("item_id", "neighbour_id", "weight")


def _name(name: str, job: Job) -> str:
    return name


_FIT_SETTINGS = ("mode", *_SPLIT_SETTINGS, "evaluate.split")


def _network(name: str) -> PipelineModel:
    return PipelineModel(
        name,
        (train_stage(name), embed_stage(name)),
        embeddings(name),
        partial(open_network, name),
        partial(embedded_version, name),
        values=partial(_name, name),
    )


MODELS: dict[str, PipelineModel] = {
    model.name: model
    for model in (
        PipelineModel(
            "popularity",
            (
                Stage(
                    "fit",
                    "Count how popular items are.",
                    reads=("interactions",),
                    writes=(part("popularity", "popularity"),),
                    settings=(*_FIT_SETTINGS, "popularity"),
                    work=fit_popularity,
                    model="popularity",
                ),
            ),
            (part("popularity", "popularity"),),
            open_popularity,
            partial(_newest_run, "popularity"),
        ),
        PipelineModel(
            "slim",
            (
                Stage(
                    "fit",
                    "Solve SLIM per item in parallel.",
                    reads=("interactions", "user_ids", "item_ids"),
                    writes=(_WEIGHTS, part("item_fits", "slim")),
                    settings=(*_FIT_SETTINGS, "slim"),
                    work=fit_slim,
                    model="slim",
                ),
            ),
            (_WEIGHTS,),
            open_slim,
            partial(_newest_run, "slim"),
            values=lambda job: job.config.slim.values,
        ),
        *map(_network, NETWORKS),
    )
}
