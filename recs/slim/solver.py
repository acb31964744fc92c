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

from recs.slim.descent import FAST, descend, least_of_largest, violation
from recs.slim.source import (
    Gram,
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
            Gram(*(_readonly(array) for array in source)),
            _readonly(np.asarray(diagonal, np.float64)),
            _readonly(items),
            limits,
            Weights(*(_readonly(array) for array in warm_start)),
            _readonly(np.arange(num_items, dtype=np.int32) if ids is None else ids),
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


def _readonly(array: np.ndarray) -> np.ndarray:
    """Return a plain read-only view: mapped files and arrays then share one compiled function."""
    view = np.ascontiguousarray(array)[:]
    view.flags.writeable = False
    return view


#: Bytes of :func:`_solve`'s arrays for each item of the catalogue, and for each item squared of the
#: largest working set: its Gram, that Gram before it grew, and a factor.
SCRATCH_AN_ITEM, SCRATCH_A_PAIR = 8 + 8 + 8 + 4 + 4 + 4, 8 + 8 + 8


@njit(nogil=True, cache=True, fastmath=FAST)
def _solve(source, diagonal, items, limits, warm, ids):
    num_items, num_head = len(diagonal), len(source.head)
    l1, l2 = limits.l1, limits.l2
    row = np.zeros(num_items)  # G_i, and 0 for all items between two problems
    r = np.empty(num_items)  # residual correlations, right for candidates only
    gains = np.empty(num_items)
    place = np.full(num_items, -1, np.int32)  # of an item in the working set
    candidates = np.empty(num_items, np.int32)
    touched = np.empty(num_items, np.int32)
    scratch = new_scratch(source, num_items)
    # The working set: its items, weights, residual correlations, diagonal and Gram.
    room = min(num_items, limits.max_working_set)
    work = np.empty(room, np.int32)
    w = np.empty(room)
    work_r = np.empty(room)
    work_d = np.empty(room)
    active = np.empty(room, np.int32)
    active_w = np.empty(room)
    sub = np.empty((min(room, 2 * WORKING_SET), min(room, 2 * WORKING_SET)))

    offsets = np.zeros(len(items) + 1, np.int64)
    neighbours = np.empty(32 * len(items), np.int32)
    weights = np.empty(32 * len(items), np.float32)
    iterations = np.zeros(len(items), np.int32)
    residuals = np.zeros(len(items))
    objectives = np.zeros(len(items))

    for n in range(len(items)):
        i = items[n]
        num_touched = gram_row(source, i, row, touched)
        # From here on row is above λ for candidates only.
        row[i] = 0.0
        num_candidates = 0
        if i < num_head:
            for j in range(num_head):
                if row[j] > l1:
                    candidates[num_candidates] = j
                    num_candidates += 1
        sorted_to = num_candidates
        for t in range(num_touched):
            if row[touched[t]] > l1:
                candidates[num_candidates] = touched[t]
                num_candidates += 1
        candidates[sorted_to:num_candidates].sort()
        if num_candidates > limits.max_neighbours:
            num_candidates = _most_similar(
                candidates[:num_candidates],
                row,
                diagonal,
                limits.max_neighbours,
                limits.cosine,
                ids,
                gains,
            )
        chosen = candidates[:num_candidates]
        chosen_head = np.searchsorted(chosen, num_head)
        users = tail_users(source, n, chosen[chosen_head:], scratch)
        scale = 0.0
        for j in chosen:
            scale = max(scale, row[j])
        limit = limits.tolerance * scale

        size = 0
        known = warm.offsets[n + 1] > warm.offsets[n]
        for p in range(warm.offsets[n], warm.offsets[n + 1]):
            j = warm.neighbours[p]
            if warm.weights[p] > 0 and row[j] > l1 and place[j] < 0 and size < room:
                place[j] = size
                work[size] = j
                w[size] = warm.weights[p]
                work_d[size] = diagonal[j]
                size += 1
            else:
                known = False  # a weight that may not be: these weights cannot stay as they are
        accepted = limits.warm_tolerance * scale if known else limit

        filled = 0  # items of the working set whose Gram is there
        passes = 0
        while True:
            num_active = 0
            for a in range(size):
                if w[a] > 0 and work[a] < num_head:
                    active[num_active] = work[a]
                    active_w[num_active] = w[a]
                    num_active += 1
            active_head = num_active
            for a in range(size):
                if w[a] > 0 and work[a] >= num_head:
                    active[num_active] = work[a]
                    active_w[num_active] = w[a]
                    num_active += 1
            correlations(
                source,
                row,
                l1,
                chosen,
                chosen_head,
                users,
                active[:num_active],
                active_w[:num_active],
                active_head,
                r,
                scratch,
            )

            # Residual inside the working set, violators outside of it.
            inside = 0.0
            for a in range(size):
                work_r[a] = r[work[a]]
                inside = max(inside, violation(work_r[a], w[a], l2))
            outside = 0.0
            violators = 0
            for j in chosen:
                if r[j] > 0 and place[j] < 0:
                    outside = max(outside, r[j])
                    if r[j] > limit:
                        gains[violators] = r[j] * r[j] / (diagonal[j] + l2)
                        violators += 1
            residual = max(inside, outside)
            stuck = size == room and inside <= limit
            if residual <= accepted or passes >= limits.max_iterations or stuck:
                break
            accepted = limit

            grown = min(violators, max(WORKING_SET, size), room - size)
            if grown > 0:
                least = least_of_largest(gains[:violators], grown)
                for j in chosen:
                    gain = r[j] * r[j] / (diagonal[j] + l2)
                    if r[j] > limit and place[j] < 0 and gain >= least and size < room:
                        place[j] = size
                        work[size] = j
                        w[size] = 0.0
                        work_d[size] = diagonal[j]
                        work_r[size] = r[j]
                        size += 1
            if size > len(sub):
                sub = _wider(sub, filled, min(2 * size, room))
            sub_gram(source, work, place, filled, size, sub)
            filled = size
            # What violators outside will undo is not worth polishing.
            aim = max(limit / 2, 0.1 * outside)
            passes += descend(sub, work_d, l2, work_r, w, size, aim, limits.max_iterations - passes)

        end = offsets[n]
        if end + num_active > len(neighbours):
            neighbours = _grown(neighbours, end + num_active)
            weights = _grown(weights, end + num_active)
        objective = diagonal[i] / 2
        for j in chosen:
            if place[j] >= 0 and w[place[j]] > 0:
                x = w[place[j]]
                neighbours[end] = j
                weights[end] = x
                end += 1
                # ½ wᵀGw − G_iᵀw + λ Σ w with Gw = G_i − λ − r.
                objective += x * ((l1 - row[j] - r[j]) / 2 + l2 * x / 2)
        offsets[n + 1] = end
        iterations[n] = passes
        residuals[n] = residual / scale if scale > 0 else 0.0
        objectives[n] = objective
        for a in range(size):
            place[work[a]] = -1
        clear_row(source, i, row, touched[:num_touched])

    return (
        offsets,
        neighbours[: offsets[-1]].copy(),
        weights[: offsets[-1]].copy(),
        iterations,
        residuals,
        objectives,
    )


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
