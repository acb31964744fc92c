"""fsSLIM of a matrix that no host holds: two passes over its files, each task in bounded memory.

1. *Neighbours.* A task inverts one range of A's items, users to items, and lets all other items
   pass by, a file at a time: an item j adds to G_ij for the items i of its users. Of those above λ
   the K most similar are kept.
2. *Weights.* Items are put in order of the item that each shares most users with, so that
   neighbours of neighbours lie together, and dealt to tasks. A task takes as many of them as have
   at most S candidates together, lets A pass by, user by user, and adds up G among those S; that
   holds every entry of G that the problems of its items have. They are then solved one by one, as
   :mod:`recs.slim.solver` solves them anywhere.

Nothing is shuffled but the lists of neighbours, N K numbers. A is read once a range of items and
once a set of S: files are cheaper to read than events are to exchange.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.arrays.matrix import CsrFiles, read_array
from recs.slim import solver
from recs.slim.budget import BudgetError
from recs.slim.gram import Gram
from recs.slim.weights import FITS_SCHEMA, fits_batch, start_weights
from recs.storage import join

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from recs.slim.weights import Task

_NEIGHBOURS_SCHEMA = "item_id int, leader int, neighbours array<int>"


@dataclass(frozen=True)
class StreamedProblem:
    """A matrix by item and by user, in files that are read one at a time.

    ``table_items`` is S, the most items among which a task adds G up.
    """

    num_users: int
    num_items: int
    by_item: CsrFiles
    by_user: CsrFiles
    folder: str
    table_items: int


def prepare(
    by_item: CsrFiles, by_user: CsrFiles, work_folder: str, max_neighbours: int, *, share: int
) -> StreamedProblem:
    """Choose S such that a task fits ``share`` bytes, a worker's part of its host's budget.

    Raises
    ------
    BudgetError
        If a task cannot fit, because files of A are too large or S too small.
    """
    manifest = by_item.manifest
    num_items, num_users = manifest["shape"]
    weighted = manifest["dtype"] is not None
    entry = 8 if weighted else 4
    shards = [*manifest["shards"], *by_user.manifest["shards"]]
    largest = max((shard["nnz"] for shard in shards), default=0)
    height = max((s["stop"] - s["start"] for s in manifest["shards"]), default=0)
    # One file as read, one inverted; a start a user; the neighbours found so far.
    first = 3 * entry * largest + 4 * num_users + (12 * max_neighbours + 40) * height
    left = share - entry * largest - 4 * num_items - 8 * num_users
    size = isqrt(max(0, left) // (8 if weighted else 4))
    if first > share or size <= max_neighbours:
        raise BudgetError(
            f"the largest file of the matrix has {largest} entries, and a worker's share of "
            f"slim.memory_budget_mb is {share // 2**20} MiB, too little for one and "
            f"{max_neighbours} neighbours an item: raise it, or spark.sql.shuffle.partitions"
        )
    return StreamedProblem(
        num_users, num_items, by_item, by_user, work_folder, min(size, num_items)
    )


def solve(
    spark: SparkSession,
    problem: StreamedProblem,
    options: solver.Options,
    *,
    warm_start: CsrFiles | None,
    blocks: int,
) -> DataFrame:
    """Return what :func:`recs.slim.fit.solve` does; neighbours are found at once, not lazily."""
    found = join(problem.folder, f"neighbours-{uuid.uuid4().hex}")
    shards = len(problem.by_item.manifest["shards"])
    ranges = spark.range(0, shards, 1, max(1, shards))
    ranges.mapInArrow(_finding(problem, options), _NEIGHBOURS_SCHEMA).write.parquet(found)
    neighbours = spark.read.parquet(found)
    ordered = neighbours.repartitionByRange(blocks, "leader", "item_id")
    ordered = ordered.sortWithinPartitions("leader", "item_id").select("item_id", "neighbours")
    return ordered.mapInArrow(_solving(problem, warm_start, options), FITS_SCHEMA)


def _read(
    files: CsrFiles, shard: dict[str, Any], weighted: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a file's entries a row, their columns, and their values, empty if all are 1."""
    name = shard["name"]
    counts, indices = (
        read_array(files.folder, f"{name}-{kind}.npy") for kind in ("counts", "indices")
    )
    if not weighted:
        return counts, indices, np.empty(0, np.float32)
    if shard["least"] == shard["greatest"] == 1:
        return counts, indices, np.ones(len(indices), np.float32)
    return counts, indices, read_array(files.folder, f"{name}-data.npy")


# The neighbours of a range of items.


def _finding(problem: StreamedProblem, options: solver.Options) -> Task:
    """Return the task: numbers of A's ranges of items in, their items' neighbours out."""

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        manifest = problem.by_item.manifest
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield _neighbours(problem, manifest, number, options)

    return task


def _neighbours(
    problem: StreamedProblem,
    manifest: dict[str, Any],
    number: int,
    options: solver.Options,
) -> pa.RecordBatch:
    import pyarrow as pa

    weighted, most = manifest["dtype"] is not None, options.max_neighbours
    assert most is not None
    # A file begins and ends where its entries do: the items between two have none.
    shards = manifest["shards"]
    mine = shards[number]
    first = mine["start"] if number > 0 else 0
    last = shards[number + 1]["start"] if number + 1 < len(shards) else problem.num_items
    size = last - first
    counts, users, values = _read(problem.by_item, mine, weighted)
    counts = np.pad(counts, (mine["start"] - first, last - mine["stop"]))
    starts, items, values = _invert(counts, users, values, problem.num_users)
    scores = np.zeros((size, most))
    ids = np.full((size, most), -1, np.int32)
    found, worst, leaders = (np.zeros(size, np.int32) for _ in range(3))
    leaders -= 1
    shared = np.zeros(size)
    for shard in shards:
        _pass_by(
            _read(problem.by_item, shard, weighted),
            shard["start"],
            (starts, items, values, first),
            float(options.l1),
            options.similarity == "cosine",
            (scores, ids, found, worst, leaders, shared),
        )
    kept = ids >= 0
    ids[~kept] = problem.num_items
    ids.sort(axis=1)
    offsets = np.concatenate(([0], np.cumsum(kept.sum(axis=1)))).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids[ids < problem.num_items]))
    numbers = np.arange(first, last, dtype=np.int32)
    return pa.RecordBatch.from_pydict(
        {"item_id": pa.array(numbers), "leader": pa.array(leaders), "neighbours": lists}
    )


@compiled_once()
@njit(nogil=True, cache=True)
def _invert(counts, users, values, num_users):
    """Return rows of items as rows of users: where each starts, its items, its values."""
    starts = np.zeros(num_users + 1, np.int32)
    for u in users:
        starts[u] += 1
    total = 0
    for u in range(num_users + 1):
        total += starts[u]
        starts[u] = total
    items = np.empty(len(users), np.int32)
    by_user = np.empty(len(values), np.float32)
    p = len(users)
    for item in range(len(counts) - 1, -1, -1):
        for _ in range(counts[item]):
            p -= 1
            starts[users[p]] -= 1
            items[starts[users[p]]] = item
            if len(values) > 0:
                by_user[starts[users[p]]] = values[p]
    return starts, items, by_user


@compiled_once()
@njit(nogil=True, cache=True)
def _pass_by(file, first, mine, l1, cosine, best):
    """Let a file of items pass by; keep the most similar of each of ``mine``."""
    counts, users, values = file
    starts, items, item_values, my_first = mine
    scores, ids, found, worst, leaders, shared = best
    most = scores.shape[1]
    row = np.zeros(len(found))
    touched = np.empty(len(found), np.int32)
    weighted = len(item_values) > 0
    end = 0
    for n in range(len(counts)):
        j = first + n
        begin, end = end, end + counts[n]
        norm, count = np.float64(0.0), 0
        for p in range(begin, end):
            x = np.float64(values[p]) if weighted else 1.0
            norm += x * x
            for q in range(starts[users[p]], starts[users[p] + 1]):
                i = items[q]
                if row[i] == 0.0:
                    touched[count] = i
                    count += 1
                row[i] += x * item_values[q] if weighted else 1.0
        for t in range(count):
            i = touched[t]
            g = row[i]
            row[i] = 0.0
            if g <= l1 or i + my_first == j:
                continue
            if g > shared[i]:
                shared[i], leaders[i] = g, j
            score = g * g / norm if cosine else g
            if found[i] < most:
                slot = found[i]
                found[i] += 1
            elif score > scores[i, worst[i]]:
                slot = worst[i]
            else:
                continue  # items come in order: of equals, those that are here have lower ids
            scores[i, slot] = score
            ids[i, slot] = j
            if found[i] == most:
                least = 0
                for k in range(1, most):
                    lower = scores[i, k] < scores[i, least]
                    if lower or (scores[i, k] == scores[i, least] and ids[i, k] > ids[i, least]):
                        least = k
                worst[i] = least


# The weights of items and their neighbours.


def _solving(
    problem: StreamedProblem, warm_start: CsrFiles | None, options: solver.Options
) -> Task:
    """Return the task: items and their neighbours in, their fits out."""

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            items = batch.column(0).to_numpy()
            lists = batch.column(1)
            offsets = np.asarray(lists.offsets, np.int64)
            neighbours = np.asarray(lists.flatten(), np.int32)
            offsets -= offsets[0]
            bounds = _together(items, offsets, neighbours, problem.num_items, problem.table_items)
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
                some = items[start:stop]
                theirs = neighbours[offsets[start] : offsets[stop]]
                members = np.unique(np.concatenate((some, theirs)))
                table = _table(problem, members)
                solution = _solve_items(
                    table,
                    members,
                    some,
                    offsets[start : stop + 1] - offsets[start],
                    theirs,
                    options,
                    start_weights(warm_start, some) if warm_start else None,
                )
                places = np.searchsorted(members, some)
                yield fits_batch(members.astype(np.int32), places, solution, options)

    return task


@compiled_once()
@njit(nogil=True, cache=True)
def _together(items, offsets, neighbours, num_items, most):
    """Return the bounds of runs of items that with their neighbours are at most ``most``."""
    run_of = np.full(num_items, -1, np.int32)
    bounds = [0]
    size, run = 0, 0
    for n in range(len(items)):
        new = 0
        while True:
            new = int(run_of[items[n]] != run)
            for p in range(offsets[n], offsets[n + 1]):
                new += run_of[neighbours[p]] != run
            if size + new <= most or size == 0:
                break
            bounds.append(n)
            size, run = 0, run + 1
        size += new
        run_of[items[n]] = run
        for p in range(offsets[n], offsets[n + 1]):
            run_of[neighbours[p]] = run
    bounds.append(len(items))
    return bounds


def _table(problem: StreamedProblem, members: np.ndarray) -> np.ndarray:
    """Return G among ``members``, its upper triangle, in one pass over the files of A by user.

    Of a binary A it is of integers: float32 would count no further than 2^24.
    """
    manifest = problem.by_user.manifest
    weighted = manifest["dtype"] is not None
    place = np.full(problem.num_items, -1, np.int32)
    place[members] = np.arange(len(members), dtype=np.int32)
    table = np.zeros((len(members), len(members)), np.float64 if weighted else np.uint32)
    for shard in manifest["shards"]:
        _add_users(_read(problem.by_user, shard, weighted), place, table)
    return table


@compiled_once("table")
@njit(nogil=True, cache=True)
def _add_users(file, place, table):
    counts, items, values = file
    weighted = len(values) > 0
    here = np.empty(len(table), np.int32)
    x = np.empty(len(table))
    end = 0
    for n in range(len(counts)):
        begin, end = end, end + counts[n]
        count = 0
        for p in range(begin, end):
            a = place[items[p]]
            if a >= 0:
                here[count] = a
                if weighted:
                    x[count] = values[p]
                count += 1
        for k in range(count):
            row = table[here[k]]
            for m in range(k, count):
                if weighted:
                    row[here[m]] += x[k] * x[m]
                else:
                    row[here[m]] += 1


def _solve_items(
    table: np.ndarray,
    members: np.ndarray,
    items: np.ndarray,
    offsets: np.ndarray,
    neighbours: np.ndarray,
    options: solver.Options,
    warm_start: solver.Weights | None,
) -> solver.Solution:
    """Solve items, each on G of itself and its neighbours; the result is in places of members."""
    solutions = []
    for n, item in enumerate(items):
        own = np.sort(np.append(neighbours[offsets[n] : offsets[n + 1]], item))
        places = np.searchsorted(members, own)
        gram = table[np.ix_(places, places)]
        gram = np.maximum(gram, gram.T).astype(np.float32)  # the lower triangle was 0
        warm = None
        if warm_start is not None:
            run = slice(*warm_start.offsets[n : n + 2])
            known = np.isin(warm_start.neighbours[run], own)
            # One that is a neighbour no more becomes the item itself, which is no candidate.
            old = np.where(known, warm_start.neighbours[run], item)
            warm = solver.Weights(
                np.array([0, len(old)]),
                np.searchsorted(own, old).astype(np.int32),
                warm_start.weights[run],
            )
        here = np.array([np.searchsorted(own, item)], np.int32)
        solution = solver.solve(Gram(gram), np.diag(gram), here, options, warm_start=warm)
        solutions.append(solution._replace(neighbours=places[solution.neighbours]))
    lengths = [len(solution.weights) for solution in solutions]
    parts = zip(*solutions, strict=True)
    joined = [np.concatenate(part) for part in parts]
    return solver.Solution(np.concatenate(([0], np.cumsum(lengths))), *joined[1:])
