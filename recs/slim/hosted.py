"""SLIM of a matrix that every host holds: A by item and by user, and a table of G, in memory.

Spark writes A by item, under the items' own ids (:func:`recs.arrays.matrix.write_csr`); each host
numbers the items by popularity and makes A by user: a second shuffle of all events would cost more
than a transposition. Tasks then make the table by blocks of rows, and solve items, all on arrays
that a host maps once.
"""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.arrays.matrix import Csr, CsrFiles, map_cached, new_array, read_array, write_array
from recs.slim import gram, solver
from recs.slim.gram import Gram, tail_starts
from recs.slim.weights import FITS_SCHEMA, fits_batch, start_weights
from recs.storage import join

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from recs.slim.budget import Plan
    from recs.slim.weights import Task

#: Items that a task solves between two batches of results.
_ITEMS_A_BATCH = 2048

#: Bytes of a block of the Gram's rows, about; a task holds one.
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class HostedProblem:
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


def prepare(
    spark: SparkSession,
    by_item: CsrFiles,
    work_folder: str,
    plan: Plan,
    counts: np.ndarray,
    *,
    bits_bytes: int,
    blocks: int,
) -> HostedProblem:
    """Write the table of G of the most popular items.

    Parameters
    ----------
    by_item
        A, items × users.
    work_folder
        Gets the table.
    plan
        What fits a host.
    counts
        int64 [N], the number of users of each item.
    bits_bytes
        What a worker may take to make the table by bits.
    blocks
        Tasks, at the least.
    """
    num_items, num_users = by_item.manifest["shape"]
    in_head = int(np.sort(counts)[num_items - plan.head :].sum())
    binary = by_item.manifest["dtype"] is None
    bits = gram.prefer_bits(num_users, plan.head, in_head, binary)
    bits = bits and num_users * plan.head // 8 <= bits_bytes
    folder = join(work_folder, "gram")
    blocks = max(blocks, plan.table_bytes // _BLOCK_BYTES)
    names = _write_table(spark, folder, by_item, plan.head, bits, blocks)
    return HostedProblem(
        num_users, num_items, by_item, plan.head, folder, names, plan.max_working_set
    )


def solve(
    spark: SparkSession,
    problem: HostedProblem,
    options: solver.Options,
    *,
    warm_start: CsrFiles | None,
    blocks: int,
) -> DataFrame:
    """Return what :func:`recs.slim.fit.solve` does, lazily.

    The item of popularity rank k is in task k mod ``blocks``, so that popular items, which cost
    most, are spread.
    """
    options = options._replace(
        max_working_set=min(options.max_working_set, problem.max_working_set)
    )
    task = _solving(problem, warm_start, blocks, options)
    return spark.range(0, blocks, 1, blocks).mapInArrow(task, FITS_SCHEMA)


def _write_table(
    spark: SparkSession,
    folder: str,
    by_item: CsrFiles,
    head: int,
    bits: bool,
    blocks: int,
) -> tuple[str, ...]:
    """Write the table by blocks of rows, one a task, and return their names in order."""
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
    problem: HostedProblem, warm_start: CsrFiles | None, blocks: int, options: solver.Options
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
def _open(problem: HostedProblem) -> tuple[Ranked, Gram]:
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


# A in ranks.


class Ranked(NamedTuple):
    """A, an item being its rank: 0 has the most users; of equals the lower id comes first.

    ``ids`` int32 [N] is the item of a rank, ``ranks`` int32 [N] the inverse; ``diagonal`` float64
    [N] is G_jj. ``by_item`` [N, U] and ``by_user`` [U, N] are in ranks.
    """

    ids: np.ndarray
    ranks: np.ndarray
    diagonal: np.ndarray
    by_item: Csr
    by_user: Csr


def item_counts(by_item: CsrFiles) -> np.ndarray:
    """Return the number of users of each item, int64 [N]."""
    manifest = by_item.manifest
    counts = np.zeros(manifest["shape"][0], np.int64)
    for shard in manifest["shards"]:
        part = read_array(by_item.folder, f"{shard['name']}-counts.npy")
        counts[shard["start"] : shard["start"] + len(part)] = part
    return counts


def rank_items(counts: np.ndarray) -> np.ndarray:
    """Return the items from the most users to the fewest, of equals the lower id first."""
    return np.argsort(-counts, kind="stable").astype(np.int32)


def open_ranked(by_item: CsrFiles) -> Ranked:
    """Map A into memory; the first call on a host makes it there.

    Raises
    ------
    MatrixError
        If the folder holds no finished matrix.
    """
    return _open_matrix(by_item.folder, json.dumps(by_item.manifest))


@functools.lru_cache(maxsize=1)  # a second one would stay in memory beside it
def _open_matrix(folder: str, manifest_text: str) -> Ranked:
    manifest = json.loads(manifest_text)
    num_items, num_users = manifest["shape"]

    def build(target: Path) -> None:
        nnz = manifest["nnz"]
        counts = item_counts(CsrFiles(folder))
        ids = rank_items(counts)
        ranks = np.empty(num_items, np.int32)
        ranks[ids] = np.arange(num_items, dtype=np.int32)
        for name, array in (("ids", ids), ("ranks", ranks)):
            np.save(target / name, array)
        item_indptr = new_array(target / "item_indptr.npy", (num_items + 1,), np.int64)
        np.cumsum(counts[ids], out=item_indptr[1:])
        user_indptr = new_array(target / "user_indptr.npy", (num_users + 1,), np.int64)
        item_users = new_array(target / "item_users.npy", (nnz,), np.int32)
        user_items = new_array(target / "user_items.npy", (nnz,), np.int32)
        item_values = user_values = np.empty(0, np.float32)
        if manifest["dtype"]:
            item_values = new_array(target / "item_values.npy", (nnz,), np.float32)
            user_values = new_array(target / "user_values.npy", (nnz,), np.float32)
        for shard in manifest["shards"]:
            start, stop, name = shard["start"], shard["stop"], shard["name"]
            users = read_array(folder, f"{name}-indices.npy")
            begins = item_indptr[ranks[start:stop]]
            _place(users, counts[start:stop], begins, item_users)
            if manifest["dtype"]:
                binary = shard["least"] == shard["greatest"] == 1
                ones = np.ones(len(users), np.float32)
                values = ones if binary else read_array(folder, f"{name}-data.npy")
                _place(values, counts[start:stop], begins, item_values)
            user_indptr[1:] += np.bincount(users, minlength=num_users)
        np.cumsum(user_indptr, out=user_indptr)
        ends = np.array(user_indptr[:-1])
        _transpose(item_indptr, item_users, item_values, ends, user_items, user_values)
        diagonal = counts[ids].astype(np.float64)
        if manifest["dtype"]:
            _norms(item_indptr, item_values, diagonal)
        np.save(target / "diagonal.npy", diagonal)

    arrays = map_cached(join(folder, "ranked"), manifest_text, build)
    return Ranked(
        arrays["ids"],
        arrays["ranks"],
        arrays["diagonal"],
        Csr(
            arrays["item_indptr"],
            arrays["item_users"],
            arrays.get("item_values"),
            (num_items, num_users),
        ),
        Csr(
            arrays["user_indptr"],
            arrays["user_items"],
            arrays.get("user_values"),
            (num_users, num_items),
        ),
    )


@compiled_once("out")
@njit(nogil=True, cache=True)
def _place(rows, counts, begins, out):
    """Copy rows that lie one after the other to where each begins in ``out``."""
    p = 0
    for n in range(len(counts)):
        for k in range(counts[n]):
            out[begins[n] + k] = rows[p]
            p += 1


@compiled_once("ends", "user_items", "user_values")
@njit(nogil=True, cache=True)
def _transpose(item_indptr, item_users, item_values, ends, user_items, user_values):
    """Deal the items, in order, to their users' rows, of which each ends at ``ends`` [U] so far."""
    for item in range(len(item_indptr) - 1):
        for p in range(item_indptr[item], item_indptr[item + 1]):
            u = item_users[p]
            user_items[ends[u]] = item
            if len(item_values) > 0:
                user_values[ends[u]] = item_values[p]
            ends[u] += 1


@compiled_once("out")
@njit(nogil=True, cache=True)
def _norms(indptr, values, out):
    for item in range(len(out)):
        total = 0.0
        for p in range(indptr[item], indptr[item + 1]):
            total += np.float64(values[p]) * values[p]
        out[item] = total
