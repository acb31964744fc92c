"""SLIM's problem for one item after another, solved exactly; knows no Spark.

For every item i, independently, with A the users × items matrix of non-negative values::

    min over w ≥ 0, w_i = 0 of  ½ ‖a_i − A w‖² + λ ‖w‖₁ + (β/2) ‖w‖²

Coordinate descent as in SLIM's paper [1]_, on correlations instead of users (the "covariance
updates" of [2]_): with G = AᵀA the residual correlation of item j is r_j = G_ij − λ − Σ_k G_jk w_k,
and one step moves w_j to max(0, (r_j + G_jj w_j) / (G_jj + β)). What makes it fast:

1. *Exact screening.* G ≥ 0 and w ≥ 0, so r_j ≤ G_ij − λ always: only items with G_ij > λ, the
   candidates, can have a weight. Nothing else is ever looked at.
2. *A working set.* Descent runs on the few candidates that would lower the objective most, over
   their own small contiguous copy of G. Then r is refreshed over all candidates; those that
   violate optimality join, at most as many as are there already; until there is no violator left.

With ``max_neighbours`` K it is fsSLIM [1]_: of the items with G_ij > λ, only the K most similar to
i are candidates. (The paper picks among all items; one with G_ij ≤ λ would take a place in vain.)

The optimality (KKT) residual of a solution is max |r_j − β w_j| where w_j > 0 and max(0, r_j)
where w_j = 0, over the largest G_ij; j are the candidates, so that this is the residual's scale at
w = 0.

References
----------
.. [1] Ning and Karypis, "SLIM: Sparse Linear Methods for Top-N Recommender Systems", ICDM 2011.
.. [2] Friedman, Hastie and Tibshirani, "Regularization Paths for Generalized Linear Models via
   Coordinate Descent", Journal of Statistical Software 33(1), 2010.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once, read_only
from recs.slim.gram import (
    FAST,
    Gram,
    Scratch,
    clear_row,
    correlations,
    gram_row,
    new_scratch,
    sub_gram,
    tail_users,
)

Similarity = Literal["cosine", "cooccurrence"]

#: Items that a working set starts with, and the least by which it grows.
WORKING_SET = 32

#: Most items of a working set, unless told otherwise.
LARGEST_WORKING_SET = 8192


class Weights(NamedTuple):
    """Sparse weights of a run of items: item n has ``neighbours[offsets[n]:offsets[n + 1]]``.

    ``offsets`` int64 [n + 1], ``neighbours`` int32 ascending within an item, ``weights`` float32.
    """

    offsets: np.ndarray
    neighbours: np.ndarray
    weights: np.ndarray


class Solution(NamedTuple):
    """What :func:`solve` found, one entry an item; see the module for the residual's definition."""

    offsets: np.ndarray
    neighbours: np.ndarray
    weights: np.ndarray
    iterations: np.ndarray
    kkt_residual: np.ndarray
    objective: np.ndarray


class Options(NamedTuple):
    """How problems are solved.

    Attributes
    ----------
    l1, l2
        λ and β, both ≥ 0.
    tolerance
        Largest KKT residual, relative.
    max_iterations
        Passes over a working set after which an item is given up, its residual telling how far it
        is from a solution.
    warm_tolerance
        Largest relative KKT residual with which weights of a warm start are kept as they are, in 0
        iterations; None makes it the tolerance.
    max_neighbours, similarity
        Candidates an item (None: all), the most similar by G_ij / √(G_ii G_jj), or by G_ij; of
        equal ones that with the lower id.
    max_working_set
        Items of a working set at the most; an item that needs more is given up.
    """

    l1: float
    l2: float
    tolerance: float = 1e-6
    max_iterations: int = 10_000
    warm_tolerance: float | None = None
    max_neighbours: int | None = None
    similarity: Similarity = "cosine"
    max_working_set: int = LARGEST_WORKING_SET

    def check(self) -> None:
        """Refuse options that make no sense.

        Raises
        ------
        ValueError
            If one is out of its range.
        """
        if not (0 <= self.l1 < np.inf and 0 <= self.l2 < np.inf):
            raise ValueError(f"l1={self.l1} and l2={self.l2} must be finite and at least 0")
        for name in ("tolerance", "warm_tolerance"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name}={value} must be between 0 and 1")
        for name in ("max_iterations", "max_neighbours", "max_working_set"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.similarity not in get_args(Similarity):
            raise ValueError(
                f"similarity={self.similarity!r} is none of {', '.join(get_args(Similarity))}"
            )


def solve(
    source: Gram,
    diagonal: np.ndarray,
    items: np.ndarray,
    options: Options,
    *,
    warm_start: Weights | None = None,
    ids: np.ndarray | None = None,
) -> Solution:
    """Solve the problems of ``items``, each to a KKT residual of at most the tolerance.

    Parameters
    ----------
    source
        Where G comes from.
    diagonal
        float64 [N], G_jj = ‖a_j‖².
    items
        int32 [n], the items to solve.
    options
        See :class:`Options`.
    warm_start
        Weights to start from, in the order of ``items``; an item that has none is started from 0.
        Without a ``warm_tolerance`` they change the time, not the solution.
    ids
        int32 [N]: what decides between equally similar items, by default their numbers.

    Returns
    -------
    Solution
        ``iterations`` int32 [n], ``kkt_residual`` and ``objective`` float64 [n]; the weights as
        in :class:`Weights`.

    Raises
    ------
    ValueError
        If an option makes no sense.
    """
    options.check()
    items = np.ascontiguousarray(items, np.int32)
    if warm_start is None:
        warm_start = Weights(
            np.zeros(len(items) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
        )
    num_items = len(diagonal)
    limits = _Limits(
        float(options.l1),
        float(options.l2),
        float(options.tolerance),
        float(options.warm_tolerance or options.tolerance),
        int(options.max_iterations),
        int(options.max_neighbours or num_items),
        options.similarity == "cosine",
        int(options.max_working_set),
    )
    return Solution(
        *_solve(
            Gram(*(read_only(array) for array in source)),
            np.asarray(diagonal, np.float64),
            items,
            limits,
            Weights(*(read_only(array) for array in warm_start)),
            np.arange(num_items, dtype=np.int32) if ids is None else ids,
        )
    )


class _Limits(NamedTuple):
    """:class:`Options` in plain numbers."""

    l1: float
    l2: float
    tolerance: float
    warm_tolerance: float
    max_iterations: int
    max_neighbours: int
    cosine: bool
    max_working_set: int


#: Bytes of a :class:`Working` for each item of the catalogue, and for each item squared of the
#: largest working set: its Gram, that Gram before it grew, and a factor.
SCRATCH_AN_ITEM, SCRATCH_A_PAIR = 8 + 8 + 8 + 4 + 4 + 4, 8 + 8 + 8


class Working(NamedTuple):
    """What a problem is solved in, used for one item after another.

    [N]: ``row`` is G_i, 0 for all items between two problems and above λ for candidates only;
    ``r`` the residual correlations, right for candidates only; ``gains`` and ``touched`` working
    memory; ``candidates`` ascending; ``place`` where an item is in the working set, or -1.

    By place in the working set: ``items``, their weights ``w``, residual correlations ``work_r``
    and ``diagonal``. ``active`` and ``active_w`` are the items with a weight, those of the head
    first.
    """

    row: np.ndarray
    r: np.ndarray
    gains: np.ndarray
    place: np.ndarray
    candidates: np.ndarray
    touched: np.ndarray
    items: np.ndarray
    w: np.ndarray
    work_r: np.ndarray
    diagonal: np.ndarray
    active: np.ndarray
    active_w: np.ndarray
    scratch: Scratch


@njit(nogil=True, cache=True)
def _new_working(source, num_items, room):
    return Working(
        np.zeros(num_items),
        np.empty(num_items),
        np.empty(num_items),
        np.full(num_items, -1, np.int32),
        np.empty(num_items, np.int32),
        np.empty(num_items, np.int32),
        np.empty(room, np.int32),
        np.empty(room),
        np.empty(room),
        np.empty(room),
        np.empty(room, np.int32),
        np.empty(room),
        new_scratch(source, num_items),
    )


@compiled_once()
@njit(nogil=True, cache=True, fastmath=FAST)
def _solve(source, diagonal, items, limits, warm, ids):
    num_items, num_head = len(diagonal), len(source.head)
    l1, l2 = limits.l1, limits.l2
    room = min(num_items, limits.max_working_set)
    working = _new_working(source, num_items, room)
    sub = np.empty((min(room, 2 * WORKING_SET), min(room, 2 * WORKING_SET)))

    offsets = np.zeros(len(items) + 1, np.int64)
    neighbours = np.empty(32 * len(items), np.int32)
    weights = np.empty(32 * len(items), np.float32)
    iterations = np.zeros(len(items), np.int32)
    residuals = np.zeros(len(items))
    objectives = np.zeros(len(items))

    for n in range(len(items)):
        i = items[n]
        num_candidates, num_touched = _find_candidates(source, i, diagonal, limits, ids, working)
        chosen = working.candidates[:num_candidates]
        chosen_head = np.searchsorted(chosen, num_head)
        users = tail_users(source, n, chosen[chosen_head:], working.scratch)
        scale = 0.0
        for j in chosen:
            scale = max(scale, working.row[j])
        limit = limits.tolerance * scale

        size, known = _start_warm(warm, n, diagonal, l1, working)
        accepted = limits.warm_tolerance * scale if known else limit
        filled = 0  # items of the working set whose Gram is there
        passes = 0
        while True:
            num_active = _refresh(source, l1, chosen, chosen_head, users, size, working)
            inside, outside, violators = _violations(chosen, diagonal, l2, limit, size, working)
            residual = max(inside, outside)
            stuck = size == room and inside <= limit
            if residual <= accepted or passes >= limits.max_iterations or stuck:
                break
            accepted = limit
            size = _grow(chosen, diagonal, l2, limit, violators, size, working)
            if size > len(sub):
                sub = _wider(sub, filled, min(2 * size, room))
            sub_gram(source, working.items, working.place, filled, size, sub)
            filled = size
            # What violators outside will undo is not worth polishing.
            aim = max(limit / 2, 0.1 * outside)
            passes += _descend(
                sub,
                working.diagonal,
                l2,
                working.work_r,
                working.w,
                size,
                aim,
                limits.max_iterations - passes,
            )

        end = offsets[n]
        if end + num_active > len(neighbours):
            neighbours = _grown(neighbours, end + num_active)
            weights = _grown(weights, end + num_active)
        objective = diagonal[i] / 2
        for j in chosen:
            if working.place[j] >= 0 and working.w[working.place[j]] > 0:
                x = working.w[working.place[j]]
                neighbours[end] = j
                weights[end] = x
                end += 1
                # ½ wᵀGw − G_iᵀw + λ Σ w with Gw = G_i − λ − r.
                objective += x * ((l1 - working.row[j] - working.r[j]) / 2 + l2 * x / 2)
        offsets[n + 1] = end
        iterations[n] = passes
        residuals[n] = residual / scale if scale > 0 else 0.0
        objectives[n] = objective
        for a in range(size):
            working.place[working.items[a]] = -1
        clear_row(source, i, working.row, working.touched[:num_touched])

    return (
        offsets,
        neighbours[: offsets[-1]].copy(),
        weights[: offsets[-1]].copy(),
        iterations,
        residuals,
        objectives,
    )


# The phases of a problem.


@njit(nogil=True, cache=True, fastmath=FAST)
def _find_candidates(source, i, diagonal, limits, ids, working):
    """Write G_i to ``row`` and the candidates; return how many these are, and how many touched."""
    row, candidates, touched = working.row, working.candidates, working.touched
    num_touched = gram_row(source, i, row, touched)
    row[i] = 0.0
    count = 0
    if i < len(source.head):
        for j in range(len(source.head)):
            if row[j] > limits.l1:
                candidates[count] = j
                count += 1
    sorted_to = count
    for t in range(num_touched):
        if row[touched[t]] > limits.l1:
            candidates[count] = touched[t]
            count += 1
    candidates[sorted_to:count].sort()
    if count > limits.max_neighbours:
        count = _most_similar(
            candidates[:count],
            row,
            diagonal,
            limits.max_neighbours,
            limits.cosine,
            ids,
            working.gains,
        )
    return count, num_touched


@njit(nogil=True, cache=True, fastmath=FAST)
def _start_warm(warm, n, diagonal, l1, working):
    """Make the earlier weights of problem ``n`` the working set.

    Return its size, and whether it is all of them, so that they may stay as they are.
    """
    size = 0
    whole = warm.offsets[n + 1] > warm.offsets[n]
    for p in range(warm.offsets[n], warm.offsets[n + 1]):
        j = warm.neighbours[p]
        room = size < len(working.items)
        if warm.weights[p] > 0 and working.row[j] > l1 and working.place[j] < 0 and room:
            _join(j, warm.weights[p], diagonal, size, working)
            size += 1
        else:
            whole = False  # a weight that may not be
    return size, whole


@njit(nogil=True, cache=True, fastmath=FAST)
def _refresh(source, l1, chosen, chosen_head, users, size, working):
    """Compute r of all candidates anew; return the number of active items."""
    items, w, active, active_w = working.items, working.w, working.active, working.active_w
    num_head = len(source.head)
    count = 0
    for a in range(size):
        if w[a] > 0 and items[a] < num_head:
            active[count] = items[a]
            active_w[count] = w[a]
            count += 1
    active_head = count
    for a in range(size):
        if w[a] > 0 and items[a] >= num_head:
            active[count] = items[a]
            active_w[count] = w[a]
            count += 1
    correlations(
        source,
        working.row,
        l1,
        chosen,
        chosen_head,
        users,
        active[:count],
        active_w[:count],
        active_head,
        working.r,
        working.scratch,
    )
    return count


@njit(nogil=True, cache=True, fastmath=FAST)
def _violations(chosen, diagonal, l2, limit, size, working):
    """Return the residual in the working set and outside, and the number of violators outside."""
    r = working.r
    inside = 0.0
    for a in range(size):
        working.work_r[a] = r[working.items[a]]
        inside = max(inside, _violation(working.work_r[a], working.w[a], l2))
    outside = 0.0
    violators = 0
    for j in chosen:
        if r[j] > 0 and working.place[j] < 0:
            outside = max(outside, r[j])
            if r[j] > limit:
                working.gains[violators] = r[j] * r[j] / (diagonal[j] + l2)
                violators += 1
    return inside, outside, violators


@njit(nogil=True, cache=True, fastmath=FAST)
def _grow(chosen, diagonal, l2, limit, violators, size, working):
    """Add the violators that would lower the objective most; return the working set's size."""
    r, room = working.r, len(working.items)
    wanted = min(violators, max(WORKING_SET, size), room - size)
    if wanted > 0:
        least = _least_of_largest(working.gains[:violators], wanted)
        for j in chosen:
            gain = r[j] * r[j] / (diagonal[j] + l2)
            if r[j] > limit and working.place[j] < 0 and gain >= least and size < room:
                _join(j, 0.0, diagonal, size, working)
                working.work_r[size] = r[j]
                size += 1
    return size


@njit(nogil=True, cache=True)
def _join(j, w, diagonal, size, working):
    """Put item ``j`` at the end of the working set."""
    working.place[j] = size
    working.items[size] = j
    working.w[size] = w
    working.diagonal[size] = diagonal[j]


@njit(nogil=True, cache=True)
def _most_similar(candidates, row, diagonal, wanted, cosine, ids, scores):
    """Move the ``wanted`` most similar candidates to the front, in order; return ``wanted``.

    ``row`` becomes 0 for the others. ``scores`` is working memory.
    """
    for c in range(len(candidates)):
        g = row[candidates[c]]
        scores[c] = g * g / diagonal[candidates[c]] if cosine else g  # cosine² but for 1 / G_ii
    least = np.sort(scores[: len(candidates)])[-wanted]
    above, equal = 0, 0
    tied = np.empty(len(candidates), np.int32)
    for c in range(len(candidates)):
        above += scores[c] > least
        if scores[c] == least:
            tied[equal] = ids[candidates[c]]
            equal += 1
    tied[:equal].sort()
    last = tied[wanted - above - 1]
    kept = 0
    for c in range(len(candidates)):
        j = candidates[c]
        if scores[c] > least or (scores[c] == least and ids[j] <= last):
            candidates[kept] = j
            kept += 1
        else:
            row[j] = 0.0
    return kept


@njit(nogil=True, cache=True)
def _grown(array, least):
    bigger = np.empty(max(least, 2 * len(array)), array.dtype)
    for p in range(len(array)):
        bigger[p] = array[p]
    return bigger


@njit(nogil=True, cache=True)
def _wider(sub, filled, width):
    wider = np.empty((width, width))
    for a in range(filled):
        for b in range(filled):
            wider[a, b] = sub[a, b]
    return wider


# Descent on a working set, which has its own small, contiguous copy of G.


@njit(nogil=True, cache=True, inline="always")
def _violation(r, w, l2):
    """How far a weight is from its optimality condition."""
    return abs(r - l2 * w) if w > 0 else max(0.0, r)


@njit(nogil=True, cache=True, fastmath=FAST)
def _least_of_largest(gains, wanted):
    """Return a threshold that half to all of ``wanted`` gains reach; more only where they tie."""
    if len(gains) <= wanted:
        return 0.0
    low, high = 0.0, np.max(gains)
    for _ in range(40):
        middle = (low + high) / 2
        count = 0
        for gain in gains:
            count += gain >= middle
        if count > wanted:
            low = middle
        elif 2 * count < wanted:
            high = middle
        else:
            return middle
    return low


@njit(nogil=True, cache=True, fastmath=FAST)
def _descend(sub, d, l2, r, w, size, limit, max_passes):
    """Pass over the working set until its residual is at most ``limit``; return the passes."""
    due = 6
    for passes in range(1, max_passes + 1):
        largest = 0.0
        support = 0
        for a in range(size):
            if w[a] == 0.0 and r[a] <= 0.0:
                continue
            step = max(0.0, (r[a] + d[a] * w[a]) / (d[a] + l2)) - w[a]
            if step != 0.0:
                w[a] += step
                largest = max(largest, abs(step) * (d[a] + l2))
                gram = sub[a]
                for b in range(size):
                    r[b] -= step * gram[b]
            support += w[a] > 0.0
        if largest > limit and passes >= due:
            _newton(sub, d, l2, r, w, size, support)
            due = passes + 4 + support // 8
            largest = 0.0
        if largest <= limit:
            residual = 0.0
            for a in range(size):
                residual = max(residual, _violation(r[a], w[a], l2))
            if residual <= limit:
                return passes
    return max_passes


@njit(nogil=True, cache=True, fastmath=FAST)
def _newton(sub, d, l2, r, w, size, support):
    """Move the positive weights towards their joint optimum, as far as they stay ≥ 0.

    Descent settles which weights are positive in a few passes and then creeps; the optimum over
    those is the solution of (G + βI) Δ = r − βw, here by Cholesky's LLᵀ. The objective never rises.
    """
    members = np.empty(support, np.int64)
    factor = np.empty((support, support))
    move = np.empty(support)
    n = 0
    for a in range(size):
        if w[a] > 0.0:
            members[n] = a
            n += 1
    for a in range(support):
        gram = sub[members[a]]
        row = factor[a]
        move[a] = r[members[a]] - l2 * w[members[a]]
        for b in range(a + 1):
            other = factor[b]
            total = gram[members[b]]
            if b == a:
                total += l2
            for k in range(b):
                total -= row[k] * other[k]
            if b < a:
                row[b] = total * other[b]
            elif total <= 1e-9 * d[members[a]]:
                return  # not definite enough: descent goes on alone
            else:
                row[a] = 1.0 / np.sqrt(total)
        total = move[a]
        for k in range(a):
            total -= row[k] * move[k]
        move[a] = total * row[a]
    for a in range(support - 1, -1, -1):
        move[a] *= factor[a, a]
        for k in range(a):
            move[k] -= move[a] * factor[a, k]
    length = 1.0
    for a in range(support):
        if w[members[a]] + move[a] < 0.0:
            length = min(length, -w[members[a]] / move[a])
    for a in range(support):
        step = length * move[a]
        w[members[a]] = max(0.0, w[members[a]] + step)
        gram = sub[members[a]]
        for b in range(size):
            r[b] -= step * gram[b]
