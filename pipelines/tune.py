"""Search of SLIM's λ and β on validation events, every trial on one Gram matrix."""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.job import Job, Stage
from pipelines.models import open_weights, slim_options
from pipelines.prepare import read_histories
from recs.data import histories, split
from recs.evaluation.ranks import sum_ranks
from recs.ranking.files import ItemCatalogue, write_catalogue
from recs.ranking.jobs import rank
from recs.ranking.protocols import RankingProtocol
from recs.schema import TABLES
from recs.slim.fit import item_weights, prepare, require_converged, solve, write_weights
from recs.storage import join

log = logging.getLogger("recs")


def run_tune_slim(job: Job) -> None:
    """Fit every (λ, β) of the grid on training events and measure it on validation events.

    From the strongest regularisation to the weakest, each trial starts from the weights of the one
    before: the solution is the same, the way to it shorter.
    """
    settings, grid = job.config.slim, job.config.tune_slim
    interactions, num_items = job.read("interactions"), job.num_items()
    problem = prepare(
        histories.positives(interactions, job.fit_splits, settings.values),
        join(job.work_folder, "slim"),
        num_users=job.num_users(),
        num_items=num_items,
        memory_budget_bytes=settings.memory_budget_mb * 2**20,
        max_neighbours=settings.max_neighbours,
    )
    seen = split.catalogue(
        interactions, job.read("item_ids"), job.fit_splits, job.config.split.recommendable
    )
    catalogue = write_catalogue(seen, join(job.work_folder, "catalogue"), num_items)
    users = histories.with_targets(
        read_histories(job, settings.values), interactions, job.config.evaluate.split
    )
    users = job.persist(users)
    trials: list[dict[str, Any]] = []
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
        require_converged(fits)
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
        log.info("trial", extra={"l1": l1, "l2": l2, grid.metric: value})
    columns = [column for column in TABLES["trials"].columns if column.name in trials[0]]
    schema = ", ".join(f"{column.name} {column.type}" for column in columns)
    rows = [[trial[column.name] for column in columns] for trial in trials]
    job.write("trials", job.spark.createDataFrame(rows, schema))


def _measure(
    job: Job, users: DataFrame, weights: DataFrame, folder: str, catalogue: ItemCatalogue
) -> tuple[float, int]:
    """Return the grid's metric on the held-out targets, and the users it is over."""
    grid = job.config.tune_slim
    model = open_weights(weights, join(folder, "weights"), job.num_items())
    protocol = RankingProtocol(grid.protocol, seed=job.config.seed)
    ranks = rank(users, [model], protocol, catalogue=catalogue)
    ranks = ranks.withColumn("split", F.lit(job.config.evaluate.split))
    totals = sum_ranks(ranks, [grid.k], ties=job.config.evaluate.ties, replicates=1, seed=0)
    wanted = (F.col("slice") == "all") & (F.col("metric") == grid.metric) & (F.col("k") == grid.k)
    row = totals.metrics(job.spark).where(wanted).collect()[0]
    return row["value"], row["users"]


TUNE_SLIM = Stage(
    "tune_slim",
    "Search SLIM's l1 and l2 on validation events.",
    reads=("interactions", "user_ids", "item_ids"),
    writes=("trials",),
    settings=("mode", "seed", "split", "evaluate", "slim", "tune_slim"),
    work=run_tune_slim,
)
