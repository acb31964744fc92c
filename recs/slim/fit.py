"""SLIM on Spark: every item's problem in parallel, over ``DataFrame.mapInArrow``.

mapInArrow is mapPartitions on Arrow batches; unlike RDDs it also runs on Spark Connect and on
shared clusters. The matrix and its Gram reach the workers as files on shared storage, mapped into
memory once a host (:mod:`recs.arrays.matrix`); the driver sees a line a file, and a number an item.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recs.arrays.matrix import Csr, CsrFiles, MatrixError, write_array, write_csr
from recs.errors import UserError
from recs.session import num_tasks
from recs.slim import budget, gram, solver, streamed
from recs.slim.ranked import Ranked, item_counts, open_ranked
from recs.slim.source import Gram, tail_starts
from recs.slim.streamed import StreamedProblem
from recs.slim.tasks import FITS_SCHEMA, fits_batch, start_weights
from recs.storage import join

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from recs.slim.tasks import Task

log = logging.getLogger("recs")

#: Memory of a host, unless told otherwise.
MEMORY_BUDGET_BYTES = 2**30

#: Items that a task solves between two batches of results.
_ITEMS_A_BATCH = 2048

#: Bytes of a block of the Gram's rows, about; a task holds one.
_BLOCK_BYTES = 32 * 2**20


class NotConverged(UserError):
    """Items whose weights are no solution."""


@dataclass(frozen=True)
class Problem:
    """A prepared matrix, to be solved for any options: small, picklable, all arrays in files.

    ``gram`` names the blocks of rows in ``gram_folder`` of the table of the ``head`` most popular
    items. Working sets have at most ``max_working_set`` items.
    """

    num_users: int
    num_items: int
    by_item: CsrFiles
    head: int
    gram_folder: str
    gram: tuple[str, ...]
    max_working_set: int


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
) -> Problem | StreamedProblem:
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
        If ids or values make no matrix, or a value is negative.
    BudgetError
        If A does not fit the budget, and ``max_neighbours`` is None.
    """
    spark = interactions.sparkSession
    blocks = blocks or num_tasks(spark)
    weighted = "value" in interactions.columns
    if weighted:
        from pyspark.sql import functions as F

        # No value is as none; what is null or not a number is left in, to be refused by name.
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
    workers = budget.workers_a_host(spark)
    try:
        plan = budget.plan(counts, num_users, binary, budget=memory_budget_bytes, workers=workers)
    except budget.BudgetError:
        if max_neighbours is None:
            raise
        by_user = write("by_user", "user_id", "item_id", (num_users, num_items))
        size = streamed.plan(by_item, by_user, max_neighbours, share=memory_budget_bytes // workers)
        log.info("slim: no host holds the matrix", extra={"table_items": size})
        return StreamedProblem(num_users, num_items, by_item, by_user, work_folder, size)
    log.info(
        "slim: a host holds the matrix",
        extra={"entries": manifest["nnz"], "workers": workers} | dataclasses.asdict(plan),
    )
    in_head = int(np.sort(counts)[len(counts) - plan.head :].sum())
    bits = gram.prefer_bits(num_users, plan.head, in_head, binary)
    bits = bits and workers * num_users * plan.head // 8 <= memory_budget_bytes - plan.matrix_bytes
    folder = join(work_folder, "gram")
    return Problem(
        num_users,
        num_items,
        by_item,
        plan.head,
        folder,
        _write_gram(
            spark, folder, by_item, plan, bits, max(blocks, plan.table_bytes // _BLOCK_BYTES)
        ),
        plan.max_working_set,
    )


def solve(
    spark: SparkSession,
    problem: Problem | StreamedProblem,
    options: solver.Options,
    *,
    warm_start: CsrFiles | None = None,
    blocks: int | None = None,
) -> DataFrame:
    """Return one row an item: its weights and how well they solve its problem.

    The objective is that of :mod:`recs.slim.solver`; the item of popularity rank k is in task k mod
    ``blocks``, so that popular items, which cost most, are spread. The result is lazy: each action
    on it solves anew, so persist it where it is read twice, as for :func:`require_converged` and a
    table.

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
    if isinstance(problem, StreamedProblem):
        return streamed.solve(spark, problem, options, warm_start=warm_start, blocks=blocks)
    options = options._replace(
        max_working_set=min(options.max_working_set, problem.max_working_set)
    )
    task = _solving(problem, warm_start, blocks, options)
    return spark.range(0, blocks, 1, blocks).mapInArrow(task, FITS_SCHEMA)


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


def _write_gram(
    spark: SparkSession,
    folder: str,
    by_item: CsrFiles,
    plan: budget.Plan,
    bits: bool,
    blocks: int,
) -> tuple[str, ...]:
    """Write the table by blocks of rows, one a task, and return their names in order."""
    head = plan.head
    if head == 0:
        return ()

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            for block in batch.column(0).to_pylist():
                ranked = open_ranked(by_item)
                items = _first_rows(ranked.by_item, head)
                start, stop = gram.row_blocks(items, blocks)[block : block + 2]
                if start == stop:
                    continue
                rows = gram.gram_rows(items, None if bits else ranked.by_user, start, stop)
                name = f"{start:010d}-{uuid.uuid4().hex}.npy"  # an attempt's own, in row order
                write_array(folder, name, rows)
                yield pa.RecordBatch.from_pydict({"name": [name]})

    written = spark.range(0, blocks, 1, blocks).mapInArrow(write, "name string").collect()
    return tuple(sorted(row["name"] for row in written))


def _first_rows(matrix: Csr, count: int) -> Csr:
    return Csr(matrix.indptr[: count + 1], matrix.indices, matrix.data, (count, matrix.shape[1]))


def _solving(
    problem: Problem, warm_start: CsrFiles | None, blocks: int, options: solver.Options
) -> Task:
    """Return the task: numbers of blocks in, the fits of their items out."""

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for block in batch.column(0).to_pylist():
                ranked, source = _open(problem)
                items = np.arange(block, problem.num_items, blocks, dtype=np.int32)
                for first in range(0, len(items), _ITEMS_A_BATCH):
                    some = items[first : first + _ITEMS_A_BATCH]
                    start = None
                    if warm_start:
                        start = start_weights(warm_start, ranked.ids[some])
                        start = start._replace(neighbours=ranked.ranks[start.neighbours])
                    solution = solver.solve(
                        source,
                        ranked.diagonal,
                        some,
                        options,
                        warm_start=start,
                        ids=ranked.ids,
                    )
                    yield fits_batch(ranked.ids, some, solution, options)

    return task


@functools.lru_cache(maxsize=1)
def _open(problem: Problem) -> tuple[Ranked, Gram]:
    """Map a problem's arrays; a worker keeps the newest problem's from task to task."""
    ranked = open_ranked(problem.by_item)
    items, users = ranked.by_item, ranked.by_user
    none = np.empty(0, np.float32)
    source = Gram(
        gram.open_gram(problem.gram_folder, problem.gram),
        users.indptr,
        tail_starts(users.indptr, users.indices, problem.head),
        users.indices,
        none if users.data is None else users.data,
        items.indptr,
        items.indices,
        none if items.data is None else items.data,
    )
    return ranked, source
