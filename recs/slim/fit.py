"""SLIM on Spark: every item's problem in parallel, over ``DataFrame.mapInArrow``.

mapInArrow is mapPartitions on Arrow batches; unlike RDDs it also runs on Spark Connect and on
shared clusters. The matrix and its Gram reach the workers as files on shared storage, mapped into
memory once a host (:mod:`recs.arrays.matrix`); the driver sees a line a file, and a number an item.
One that fits a host is solved by :mod:`recs.slim.hosted`, another by :mod:`recs.slim.streamed`.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import numpy as np

from recs.arrays.matrix import CsrFiles, MatrixError, write_csr
from recs.errors import UserError
from recs.session import num_tasks
from recs.slim import budget, hosted, solver, streamed
from recs.slim.hosted import HostedProblem, item_counts
from recs.slim.streamed import StreamedProblem
from recs.storage import join

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("recs")

#: Memory of a host, unless told otherwise.
MEMORY_BUDGET_BYTES = 2**30


class NotConverged(UserError):
    """Items whose weights are no solution."""


def fit(
    interactions: DataFrame,
    work_folder: str,
    options: solver.Options,
    *,
    num_users: int,
    num_items: int,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    warm_start: DataFrame | None = None,
    blocks: int | None = None,
) -> DataFrame:
    """Return the SLIM weights of every item, as :func:`solve` does, of training positives.

    Parameters
    ----------
    interactions, work_folder, num_users, num_items, memory_budget_bytes
        As for :func:`prepare`.
    options
        λ, β and how exactly to solve.
    warm_start
        item_id int, neighbour_id int, weight float: earlier weights of the same items.
    blocks
        Tasks of each step; by default :func:`recs.session.num_tasks`.
    """
    spark = interactions.sparkSession
    problem = prepare(
        interactions,
        work_folder,
        num_users=num_users,
        num_items=num_items,
        memory_budget_bytes=memory_budget_bytes,
        max_neighbours=options.max_neighbours,
        blocks=blocks,
    )
    start = None
    if warm_start is not None:
        start = write_weights(
            warm_start, join(work_folder, "warm_start"), num_items=num_items, blocks=blocks
        )
    return solve(spark, problem, options, warm_start=start, blocks=blocks)


def prepare(
    interactions: DataFrame,
    work_folder: str,
    *,
    num_users: int,
    num_items: int,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    max_neighbours: int | None = None,
    blocks: int | None = None,
) -> HostedProblem | StreamedProblem:
    """Write what every solve of one training set shares: A, and G of its most popular items.

    An A that does not fit a host is written too if ``max_neighbours`` is given; it is then solved
    by :mod:`recs.slim.streamed`.

    Parameters
    ----------
    interactions
        user_id int, item_id int and, unless A is binary, value ≥ 0, of which a pair's are summed.
    work_folder
        Path or URI that all hosts see, for this problem alone; to be kept until the last solve.
    num_users, num_items
        U and N: ids are below.
    memory_budget_bytes
        What the Python workers of one host may hold together, see :func:`recs.slim.budget.plan`:
        A by item and by user, the table of G, and each worker's own arrays. (An idle worker's some
        100 MiB of interpreter and libraries, and the weights of a warm start, come on top.)
    max_neighbours
        That of the options that it will be solved with.
    blocks
        Tasks of each step; by default :func:`recs.session.num_tasks`.

    Raises
    ------
    MatrixError
        If ids or values make no matrix, a value is negative, or G may be beyond a float32.
    BudgetError
        If A does not fit the budget, and ``max_neighbours`` is None.
    """
    spark = interactions.sparkSession
    blocks = blocks or num_tasks(spark)
    weighted = "value" in interactions.columns
    if weighted:
        from pyspark.sql import functions as F

        # No value is as none, nor one that a float32 holds as 0; what is null or not a number is
        # left in, to be refused by name.
        interactions = interactions.withColumn("value", F.col("value").cast("float"))
        interactions = interactions.where(F.col("value").isNull() | (F.col("value") != 0))

    def write(folder: str, row: str, column: str, shape: tuple[int, int]) -> CsrFiles:
        return write_csr(
            interactions,
            join(work_folder, folder),
            row=row,
            column=column,
            value="value" if weighted else None,
            shape=shape,
            merge_repeats=True,
            blocks=blocks,
        )

    by_item = write("by_item", "item_id", "user_id", (num_items, num_users))
    manifest = by_item.manifest
    if manifest["least"] <= 0:
        raise MatrixError(
            f"column 'value' goes down to {manifest['least']:g}; SLIM takes values ≥ 0: leave "
            "negative feedback out"
        )
    counts, binary = item_counts(by_item), manifest["dtype"] is None
    _require_room(max((shard["greatest"] for shard in manifest["shards"]), default=1.0), counts)
    workers = budget.workers_a_host(spark)
    try:
        plan = budget.plan(counts, num_users, binary, budget=memory_budget_bytes, workers=workers)
    except budget.BudgetError:
        if max_neighbours is None:
            raise
        by_user = write("by_user", "user_id", "item_id", (num_users, num_items))
        share = memory_budget_bytes // workers
        problem = streamed.prepare(by_item, by_user, work_folder, max_neighbours, share=share)
        log.info("slim: no host holds the matrix", extra={"table_items": problem.table_items})
        return problem
    log.info(
        "slim: a host holds the matrix",
        extra={"entries": manifest["nnz"], "workers": workers} | dataclasses.asdict(plan),
    )
    return hosted.prepare(
        spark,
        by_item,
        work_folder,
        plan,
        counts,
        bits_bytes=(memory_budget_bytes - plan.matrix_bytes) // workers,
        blocks=blocks,
    )


def _require_room(greatest: float, counts: np.ndarray) -> None:
    """Refuse values whose G a float32, which tables of it are of, may not hold."""
    users = int(counts.max(initial=0))
    if users * greatest**2 > np.finfo(np.float32).max:
        raise MatrixError(
            f"column 'value' goes up to {greatest:g}: a float32 may not hold the sum of its "
            f"squares over the {users} users of an item; set slim.values=binary, or give the event "
            "types a smaller weight (events.types.NAME.weight), and run the stages from split on "
            "again"
        )


def solve(
    spark: SparkSession,
    problem: HostedProblem | StreamedProblem,
    options: solver.Options,
    *,
    warm_start: CsrFiles | None = None,
    blocks: int | None = None,
) -> DataFrame:
    """Return one row an item: its weights and how well they solve its problem.

    The objective is that of :mod:`recs.slim.solver`. The result is lazy: each action on it solves
    anew, so persist it where it is read twice, as for :func:`require_converged` and a table.

    Parameters
    ----------
    problem
        From :func:`prepare`.
    options
        λ, β and how exactly to solve; with a ``warm_tolerance``, items whose earlier weights still
        solve their problem that well keep them, in 0 iterations.
    warm_start
        From :func:`write_weights`.
    blocks
        Tasks; by default :func:`recs.session.num_tasks`.

    Returns
    -------
    DataFrame
        item_id int, neighbours array<int> (ascending), weights array<float>, iterations int,
        nonzeros int, kkt_residual double (relative), objective double, converged boolean. Items
        without an event have empty arrays.
    """
    options.check()
    blocks = min(blocks or num_tasks(spark), problem.num_items)
    way = streamed if isinstance(problem, StreamedProblem) else hosted
    return way.solve(spark, problem, options, warm_start=warm_start, blocks=blocks)


def write_weights(
    weights: DataFrame, folder: str, *, num_items: int, blocks: int | None = None
) -> CsrFiles:
    """Write item_id, neighbour_id, weight as the matrix that a warm start is read from."""
    return write_csr(
        weights,
        folder,
        row="item_id",
        column="neighbour_id",
        value="weight",
        shape=(num_items, num_items),
        blocks=blocks,
    )


def item_weights(fits: DataFrame) -> DataFrame:
    """Return item_id int, neighbour_id int, weight float: a row for each weight of ``fits``."""
    from pyspark.sql import functions as F

    pair = F.explode(F.arrays_zip("neighbours", "weights")).alias("pair")
    return fits.select("item_id", pair).select(
        "item_id",
        F.col("pair.neighbours").alias("neighbour_id"),
        F.col("pair.weights").alias("weight"),
    )


def require_converged(fits: DataFrame) -> int:
    """Refuse weights that are no solution; return the number of items that took an iteration.

    The others kept the weights that they had, or have none.

    Raises
    ------
    NotConverged
        If an item's KKT residual is above the tolerance that it was solved to, or for weights of a
        warm start, that they were kept with.
    """
    from pyspark.sql import functions as F

    failed = ~F.col("converged")
    items, worst, solved = fits.agg(
        F.count_if(failed),
        F.max(F.when(failed, F.col("kkt_residual"))),
        F.count_if(F.col("iterations") > 0),
    ).collect()[0]
    if items:
        raise NotConverged(
            f"{items} items have not converged, their worst KKT residual is {worst:.2g}; raise "
            "max_iterations, or l2, which conditions the problem, or the tolerance; an item with "
            "thousands of weights may need a larger l1, max_neighbours, or memory_budget_mb"
        )
    return solved
