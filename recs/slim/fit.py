"""SLIM on Spark: every item's problem in parallel, over ``DataFrame.mapInArrow``.

mapInArrow is mapPartitions on Arrow batches; unlike RDDs it also runs on Spark Connect and on
shared clusters. The matrix and its Gram reach the workers as files on shared storage, mapped into
memory once a host (:mod:`recs.matrix`); the driver sees a line a file.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recs.matrix import CsrFiles, MatrixError, write_array, write_csr
from recs.slim import gram, solver
from recs.storage import join

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    Task = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]

#: Largest Gram that is written as one dense file and mapped by every host.
MEMORY_BUDGET_BYTES = 4 * 2**30

#: Items that a task solves between two batches of results.
_ITEMS_A_BATCH = 2048

_FITS_SCHEMA = (
    "item_id int, neighbours array<int>, weights array<float>, iterations int, nonzeros int, "
    "kkt_residual double, objective double, converged boolean"
)


class NotConverged(RuntimeError):
    """Items whose weights are no solution."""


@dataclass(frozen=True)
class Problem:
    """A prepared matrix, to be solved for any (λ, β): small, picklable, all arrays in files.

    ``by_item`` is A's CSC; ``by_user``, its CSR, is there where the Gram needs it; ``gram`` names
    the blocks of G's rows in ``gram_folder``, and is None when G is computed on the fly.
    """

    num_users: int
    num_items: int
    by_item: CsrFiles
    by_user: CsrFiles | None
    gram_folder: str
    gram: tuple[str, ...] | None


def fit(
    interactions: DataFrame,
    work_folder: str,
    *,
    num_users: int,
    num_items: int,
    l1: float,
    l2: float,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    warm_start: DataFrame | None = None,
    blocks: int | None = None,
) -> DataFrame:
    """Return the SLIM weights of every item, as :func:`solve` does, of training positives.

    Parameters
    ----------
    interactions, work_folder, num_users, num_items, memory_budget_bytes
        As for :func:`prepare`.
    l1, l2, tolerance, max_iterations
        As for :func:`solve`.
    warm_start
        item_id int, neighbour_id int, weight float: earlier weights of the same items.
    blocks
        Tasks of each step; by default ``spark.sql.shuffle.partitions``.
    """
    spark = interactions.sparkSession
    problem = prepare(
        interactions,
        work_folder,
        num_users=num_users,
        num_items=num_items,
        memory_budget_bytes=memory_budget_bytes,
        blocks=blocks,
    )
    start = None
    if warm_start is not None:
        start = write_weights(
            warm_start, join(work_folder, "warm_start"), num_items=num_items, blocks=blocks
        )
    return solve(
        spark,
        problem,
        l1=l1,
        l2=l2,
        tolerance=tolerance,
        max_iterations=max_iterations,
        warm_start=start,
        blocks=blocks,
    )


def prepare(
    interactions: DataFrame,
    work_folder: str,
    *,
    num_users: int,
    num_items: int,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    blocks: int | None = None,
) -> Problem:
    """Write what every solve of one training set shares: A and, where it fits, G = AᵀA.

    Parameters
    ----------
    interactions
        user_id int, item_id int and, unless A is binary, value ≥ 0, of which a pair's are summed.
        It is read once or twice.
    work_folder
        Path or URI that all hosts see, for this problem alone; to be kept until the last solve.
    num_users, num_items
        M and N: ids are below.
    memory_budget_bytes
        Largest dense G, of N² entries of 2 bytes (binary A, fewer than 65,536 users) or 4; a
        larger one is never made, and the solver computes what it needs of it from A.
    blocks
        Tasks of each step; by default ``spark.sql.shuffle.partitions``.

    Raises
    ------
    MatrixError
        If ids or values make no matrix, or a value is negative.
    """
    spark = interactions.sparkSession
    blocks = blocks or _default_blocks(spark)

    def write(folder: str, row: str, column: str, shape: tuple[int, int]) -> CsrFiles:
        path = join(work_folder, folder)
        return write_csr(
            interactions,
            path,
            row=row,
            column=column,
            value="value" if "value" in interactions.columns else None,
            shape=shape,
            merge_repeats=True,
            blocks=blocks,
        )

    by_item = write("by_item", "item_id", "user_id", (num_items, num_users))
    manifest = by_item.manifest
    if manifest["least"] < 0:
        raise MatrixError(
            f"column 'value' goes down to {manifest['least']:g}; SLIM takes values ≥ 0: leave "
            "negative feedback out"
        )
    binary = manifest["dtype"] is None
    dense = num_items**2 * gram.gram_dtype(num_users, binary).itemsize <= memory_budget_bytes
    bits = dense and gram.prefer_bits(num_users, num_items, manifest["nnz"], binary)
    by_user = None if bits else write("by_user", "user_id", "item_id", (num_users, num_items))
    folder = join(work_folder, "gram")
    shards = _write_gram(spark, folder, by_item, by_user, blocks) if dense else None
    return Problem(num_users, num_items, by_item, by_user, folder, shards)


def solve(
    spark: SparkSession,
    problem: Problem,
    *,
    l1: float,
    l2: float,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
    warm_start: CsrFiles | None = None,
    blocks: int | None = None,
) -> DataFrame:
    """Return one row an item: its weights and how well they solve its problem.

    The objective is that of :mod:`recs.slim.solver`; item i is in task i mod ``blocks``, so that
    popular items, which cost most, are spread. The result is lazy: each action on it solves anew,
    so persist it where it is read twice, as for :func:`require_converged` and a table.

    Parameters
    ----------
    problem
        From :func:`prepare`.
    l1, l2
        λ and β.
    tolerance
        Largest KKT residual, relative, that counts as converged.
    max_iterations
        Passes over an item's working set after which it is given up.
    warm_start
        From :func:`write_weights`; it saves time and changes no weight beyond the tolerance.
    blocks
        Tasks; by default ``spark.sql.shuffle.partitions``.

    Returns
    -------
    DataFrame
        item_id int, neighbours array<int> (ascending), weights array<float>, iterations int,
        nonzeros int, kkt_residual double (relative), objective double, converged boolean. Items
        without an event have empty arrays.
    """
    blocks = min(blocks or _default_blocks(spark), problem.num_items)
    options: dict[str, Any] = {
        "l1": l1,
        "l2": l2,
        "tolerance": tolerance,
        "max_iterations": max_iterations,
    }
    solver.check_options(**options)
    task = _solving(problem, warm_start, blocks, options)
    return spark.range(0, blocks, 1, blocks).mapInArrow(task, _FITS_SCHEMA)


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


def require_converged(fits: DataFrame) -> None:
    """Refuse weights that are no solution.

    Raises
    ------
    NotConverged
        If an item's KKT residual is above the tolerance that it was solved to.
    """
    from pyspark.sql import functions as F

    found = fits.where(~F.col("converged")).agg(
        F.count("*").alias("items"), F.max("kkt_residual").alias("worst")
    )
    items, worst = found.collect()[0]
    if items:
        raise NotConverged(
            f"{items} items have not converged, their worst KKT residual is {worst:.2g}; raise "
            "max_iterations, or l2, which conditions the problem, or the tolerance"
        )


def _default_blocks(spark: SparkSession) -> int:
    return int(spark.conf.get("spark.sql.shuffle.partitions", "200") or 200)


def _write_gram(
    spark: SparkSession, folder: str, by_item: CsrFiles, by_user: CsrFiles | None, blocks: int
) -> tuple[str, ...]:
    """Write G by blocks of rows, one a task, and return the names of the blocks in order."""

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            for block in batch.column(0).to_pylist():
                items = by_item.open()
                start, stop = gram.row_blocks(items, blocks)[block : block + 2]
                if start == stop:
                    continue
                rows = gram.gram_rows(items, by_user.open() if by_user else None, start, stop)
                name = f"{start:010d}-{uuid.uuid4().hex}.npy"  # an attempt's own, in row order
                write_array(folder, name, rows)
                yield pa.RecordBatch.from_pydict({"name": [name]})

    written = spark.range(0, blocks, 1, blocks).mapInArrow(write, "name string").collect()
    return tuple(sorted(row["name"] for row in written))


def _solving(
    problem: Problem, warm_start: CsrFiles | None, blocks: int, options: dict[str, Any]
) -> Task:
    """Return the task: numbers of blocks in, the fits of their items out."""

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for block in batch.column(0).to_pylist():
                source, diagonal = _open(problem)
                items = np.arange(block, problem.num_items, blocks, dtype=np.int32)
                for first in range(0, len(items), _ITEMS_A_BATCH):
                    some = items[first : first + _ITEMS_A_BATCH]
                    start = _rows(warm_start, some) if warm_start else None
                    solution = solver.solve(source, diagonal, some, warm_start=start, **options)
                    yield _fits(some, solution, options["tolerance"])

    return task


def _open(problem: Problem) -> tuple[solver.DenseGram | solver.SparseGram, np.ndarray]:
    by_item = problem.by_item.open()
    diagonal = gram.diagonal(by_item)
    if problem.gram is not None:
        return solver.DenseGram(gram.open_gram(problem.gram_folder, problem.gram)), diagonal
    assert problem.by_user is not None, "a problem without a Gram has A by user"
    by_user = problem.by_user.open()
    none = np.empty(0, np.float32)
    return solver.SparseGram(
        by_user.indptr,
        by_user.indices,
        none if by_user.data is None else by_user.data,
        by_item.indptr,
        by_item.indices,
        none if by_item.data is None else by_item.data,
    ), diagonal


def _rows(files: CsrFiles, items: np.ndarray) -> solver.Weights:
    """Return the rows ``items`` of a matrix of weights."""
    matrix = files.open()
    lengths = matrix.indptr[items + 1] - matrix.indptr[items]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    places = np.arange(offsets[-1]) + np.repeat(matrix.indptr[items] - offsets[:-1], lengths)
    ones = np.ones(len(places), np.float32)
    weights = ones if matrix.data is None else matrix.data[places]
    return solver.Weights(offsets, matrix.indices[places], weights)


def _fits(items: np.ndarray, solution: solver.Solution, tolerance: float) -> pa.RecordBatch:
    import pyarrow as pa

    offsets = pa.array(solution.offsets.astype(np.int32))
    columns = {
        "item_id": pa.array(items),
        "neighbours": pa.ListArray.from_arrays(offsets, pa.array(solution.neighbours)),
        "weights": pa.ListArray.from_arrays(offsets, pa.array(solution.weights)),
        "iterations": pa.array(solution.iterations),
        "nonzeros": pa.array(np.diff(solution.offsets).astype(np.int32)),
        "kkt_residual": pa.array(solution.kkt_residual),
        "objective": pa.array(solution.objective),
        "converged": pa.array(solution.kkt_residual <= tolerance),
    }
    return pa.RecordBatch.from_pydict(columns)
