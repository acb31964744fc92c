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

The optimality (KKT) residual of a solution is max |r_j − β w_j| where w_j > 0 and max(0, r_j)
where w_j = 0, over the largest G_ij, j ≠ i, which is the residual's scale at w = 0.

References
----------
.. [1] Ning and Karypis, "SLIM: Sparse Linear Methods for Top-N Recommender Systems", ICDM 2011.
.. [2] Friedman, Hastie and Tibshirani, "Regularization Paths for Generalized Linear Models via
   Coordinate Descent", Journal of Statistical Software 33(1), 2010.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload

#: Items that a working set starts with, and the least by which it grows.
WORKING_SET = 32

_FAST = {"contract", "reassoc", "nsz"}


class DenseGram(NamedTuple):
    """G = AᵀA in memory or mapped from a file: ``gram`` [N, N], any integer or float type."""

    gram: np.ndarray


class SparseGram(NamedTuple):
    """G = AᵀA computed on the fly from A by user and by item, for catalogues too large for G.

    ``*_indptr`` int64, ``user_items`` and ``item_users`` int32 ascending within a row, ``*_values``
    float32, or empty when every value is 1. Memory beyond A is O(users + items) and the working
    set's own Gram.
    """

    user_indptr: np.ndarray
    user_items: np.ndarray
    user_values: np.ndarray
    item_indptr: np.ndarray
    item_users: np.ndarray
    item_values: np.ndarray


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


def solve(
    source: DenseGram | SparseGram,
    diagonal: np.ndarray,
    items: np.ndarray,
    *,
    l1: float,
    l2: float,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
    warm_start: Weights | None = None,
) -> Solution:
    """Solve the problems of ``items``, each to a KKT residual of at most ``tolerance``.

    Parameters
    ----------
    source
        Where G comes from.
    diagonal
        float64 [N], G_jj = ‖a_j‖².
    items
        int32 [n], the items to solve.
    l1, l2
        λ and β, both ≥ 0.
    tolerance
        Largest KKT residual, relative.
    max_iterations
        Passes over a working set after which an item is given up, its residual telling how far it
        is from a solution.
    warm_start
        Weights to start from, in the order of ``items``; they change the time, not the solution.

    Returns
    -------
    Solution
        ``iterations`` int32 [n], ``kkt_residual`` and ``objective`` float64 [n]; the weights as
        in :class:`Weights`.

    Raises
    ------
    ValueError
        If λ, β, the tolerance or the number of iterations is not a sensible number.
    """
    check_options(l1=l1, l2=l2, tolerance=tolerance, max_iterations=max_iterations)
    items = np.ascontiguousarray(items, np.int32)
    if warm_start is None:
        warm_start = Weights(
            np.zeros(len(items) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
        )
    return Solution(
        *_solve(
            source.__class__(*(_readonly(array) for array in source)),
            _readonly(np.asarray(diagonal, np.float64)),
            _readonly(items),
            float(l1),
            float(l2),
            float(tolerance),
            int(max_iterations),
            Weights(*(_readonly(array) for array in warm_start)),
        )
    )


def check_options(*, l1: float, l2: float, tolerance: float, max_iterations: int) -> None:
    """Refuse options of :func:`solve` that make no sense.

    Raises
    ------
    ValueError
        If λ, β, the tolerance or the number of iterations is not a sensible number.
    """
    if not (0 <= l1 < np.inf and 0 <= l2 < np.inf):
        raise ValueError(f"l1={l1} and l2={l2} must be finite and at least 0")
    if not 0 < tolerance < 1 or max_iterations < 1:
        raise ValueError(
            f"tolerance={tolerance} must be between 0 and 1, max_iterations={max_iterations} ≥ 1"
        )


def _readonly(array: np.ndarray) -> np.ndarray:
    """Return a plain read-only view: mapped files and arrays then share one compiled function."""
    view = np.ascontiguousarray(array)[:]
    view.flags.writeable = False
    return view


@njit(nogil=True, cache=True, fastmath=_FAST)
def _solve(source, diagonal, items, l1, l2, tolerance, max_iterations, warm):
    num_items = len(diagonal)
    row = np.empty(num_items)  # G_i
    r = np.empty(num_items)  # residual correlations, right for candidates only
    place = np.full(num_items, -1, np.int32)  # of an item in the working set
    candidates = np.empty(num_items, np.int32)
    gains = np.empty(num_items)
    scratch = _scratch(source)
    # The working set: its items, weights, residual correlations, diagonal and Gram.
    work = np.empty(num_items, np.int32)
    w = np.empty(num_items)
    work_r = np.empty(num_items)
    work_d = np.empty(num_items)
    sub = np.empty((2 * WORKING_SET, 2 * WORKING_SET))
    active = np.empty(num_items, np.int32)
    active_w = np.empty(num_items)

    offsets = np.zeros(len(items) + 1, np.int64)
    neighbours = np.empty(32 * len(items), np.int32)
    weights = np.empty(32 * len(items), np.float32)
    iterations = np.zeros(len(items), np.int32)
    residuals = np.zeros(len(items))
    objectives = np.zeros(len(items))

    for n in range(len(items)):
        i = items[n]
        _gram_row(source, i, row)
        num_candidates = 0
        scale = 0.0
        for j in range(num_items):
            if row[j] > l1 and j != i:
                candidates[num_candidates] = j
                num_candidates += 1
                scale = max(scale, row[j])
        chosen = candidates[:num_candidates]
        limit = tolerance * scale
        size = 0
        for p in range(warm.offsets[n], warm.offsets[n + 1]):
            j = warm.neighbours[p]
            if warm.weights[p] > 0 and row[j] > l1 and j != i and place[j] < 0:
                place[j] = size
                work[size] = j
                w[size] = warm.weights[p]
                work_d[size] = diagonal[j]
                size += 1
        sub = _extend(source, work, 0, size, sub, scratch)

        passes = 0
        while True:
            num_active = 0
            for a in range(size):
                if w[a] > 0:
                    active[num_active] = work[a]
                    active_w[num_active] = w[a]
                    num_active += 1
            _correlations(
                source, row, l1, chosen, active[:num_active], active_w[:num_active], r, scratch
            )

            # Residual inside the working set, violators outside of it.
            residual = 0.0
            for a in range(size):
                work_r[a] = r[work[a]]
                residual = max(residual, _violation(work_r[a], w[a], l2))
            outside = 0.0
            violators = 0
            for c in range(num_candidates):
                j = chosen[c]
                if r[j] > 0 and place[j] < 0:
                    outside = max(outside, r[j])
                    if r[j] > limit:
                        gains[violators] = r[j] * r[j] / (diagonal[j] + l2)
                        violators += 1
            residual = max(residual, outside)
            if residual <= limit or passes >= max_iterations:
                break

            if violators > 0:
                grown = min(violators, max(WORKING_SET, size))
                least = _least_of_largest(gains[:violators], grown)
                old = size
                for c in range(num_candidates):
                    j = chosen[c]
                    gain = r[j] * r[j] / (diagonal[j] + l2)
                    if r[j] > limit and place[j] < 0 and gain >= least:
                        place[j] = size
                        work[size] = j
                        w[size] = 0.0
                        work_d[size] = diagonal[j]
                        work_r[size] = r[j]
                        size += 1
                sub = _extend(source, work, old, size, sub, scratch)
            # What violators outside will undo is not worth polishing.
            aim = max(limit / 2, 0.1 * outside)
            passes += _descend(sub, work_d, l2, work_r, w, size, aim, max_iterations - passes)

        end = offsets[n]
        if end + num_active > len(neighbours):
            neighbours = _grown(neighbours, end + num_active)
            weights = _grown(weights, end + num_active)
        objective = diagonal[i] / 2
        for c in range(num_candidates):
            j = chosen[c]
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

    return (
        offsets,
        neighbours[: offsets[-1]].copy(),
        weights[: offsets[-1]].copy(),
        iterations,
        residuals,
        objectives,
    )


@njit(nogil=True, cache=True, inline="always")
def _violation(r, w, l2):
    """How far a weight is from its optimality condition."""
    return abs(r - l2 * w) if w > 0 else max(0.0, r)


@njit(nogil=True, cache=True, fastmath=_FAST)
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


@njit(nogil=True, cache=True, fastmath=_FAST)
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


@njit(nogil=True, cache=True, fastmath=_FAST)
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


@njit(nogil=True, cache=True)
def _grown(array, least):
    bigger = np.empty(max(least, 2 * len(array)), array.dtype)
    bigger[: len(array)] = array
    return bigger


@njit(nogil=True, cache=True)
def _extend(source, work, old, size, sub, scratch):
    """Return the working set's Gram, with rows and columns from ``old`` to ``size`` filled in."""
    if size > len(sub):
        bigger = np.empty((2 * size, 2 * size))
        bigger[:old, :old] = sub[:old, :old]
        sub = bigger
    _sub_gram(source, work, old, size, sub, scratch)
    return sub


# The interface of a Gram source: four functions, one body for each kind of source.


def _scratch(source):
    """Working memory of a source, zero between calls."""


def _gram_row(source, i, row):
    """Write G_i to ``row`` [N]."""


def _sub_gram(source, work, old, size, sub, scratch):
    """Write G among work[:size] to ``sub``, where a row or column is ≥ ``old``."""


def _correlations(source, row, l1, candidates, active, w, r, scratch):
    """Write G_ij − λ − Σ_k G_jk w_k, k in ``active``, to r[j] for every candidate j."""


@overload(_scratch)
def _scratch_of(source):
    if source.instance_class is DenseGram:
        return lambda source: np.zeros(0)
    return lambda source: np.zeros(len(source.user_indptr) - 1)


@overload(_gram_row, jit_options={"fastmath": _FAST})
def _gram_row_of(source, i, row):
    if source.instance_class is DenseGram:

        def dense(source, i, row):
            gram = source.gram[i]
            for j in range(len(row)):
                row[j] = gram[j]

        return dense

    def sparse(source, i, row):
        row[:] = 0.0
        weighted = len(source.user_values) > 0
        for p in range(source.item_indptr[i], source.item_indptr[i + 1]):
            u = source.item_users[p]
            for q in range(source.user_indptr[u], source.user_indptr[u + 1]):
                value = 1.0
                if weighted:
                    value = np.float64(source.item_values[p]) * source.user_values[q]
                row[source.user_items[q]] += value

    return sparse


@overload(_sub_gram)
def _sub_gram_of(source, work, old, size, sub, scratch):
    if source.instance_class is DenseGram:

        def dense(source, work, old, size, sub, scratch):
            for a in range(size):
                gram = source.gram[work[a]]
                for b in range(old if a < old else 0, size):
                    sub[a, b] = gram[work[b]]

        return dense

    def sparse(source, work, old, size, sub, scratch):
        for a in range(old, size):
            _scatter(source, work[a], 1.0, scratch)
            for b in range(a + 1):
                value = _gather(source, work[b], scratch)
                sub[a, b] = value
                sub[b, a] = value
            _clear(source, work[a], scratch)

    return sparse


@overload(_correlations, jit_options={"fastmath": _FAST})
def _correlations_of(source, row, l1, candidates, active, w, r, scratch):
    if source.instance_class is DenseGram:

        def dense(source, row, l1, candidates, active, w, r, scratch):
            gram = source.gram
            num_items = len(row)
            if 8 * len(candidates) < num_items:
                for c in range(len(candidates)):
                    j = candidates[c]
                    r[j] = row[j] - l1
                for k in range(len(active)):
                    g, x = gram[active[k]], w[k]
                    for c in range(len(candidates)):
                        r[candidates[c]] -= x * g[candidates[c]]
                return
            # Whole rows, four at a time: contiguous reads beat skipping those not asked for.
            for j in range(num_items):
                r[j] = row[j] - l1
            whole = len(active) // 4 * 4
            for k in range(0, whole, 4):
                g0, g1, g2, g3 = (
                    gram[active[k]],
                    gram[active[k + 1]],
                    gram[active[k + 2]],
                    gram[active[k + 3]],
                )
                x0, x1, x2, x3 = w[k], w[k + 1], w[k + 2], w[k + 3]
                for j in range(num_items):
                    r[j] -= (x0 * g0[j] + x1 * g1[j]) + (x2 * g2[j] + x3 * g3[j])
            for k in range(whole, len(active)):
                g, x = gram[active[k]], w[k]
                for j in range(num_items):
                    r[j] -= x * g[j]

        return dense

    def sparse(source, row, l1, candidates, active, w, r, scratch):
        for k in range(len(active)):
            _scatter(source, active[k], w[k], scratch)  # A w, a value a user
        for c in range(len(candidates)):
            j = candidates[c]
            r[j] = row[j] - l1 - _gather(source, j, scratch)
        for k in range(len(active)):
            _clear(source, active[k], scratch)

    return sparse


@njit(nogil=True, cache=True)
def _scatter(source, j, x, users):
    """users += x a_j"""
    weighted = len(source.item_values) > 0
    for p in range(source.item_indptr[j], source.item_indptr[j + 1]):
        users[source.item_users[p]] += x * source.item_values[p] if weighted else x


@njit(nogil=True, cache=True)
def _gather(source, j, users):
    """Return a_jᵀ users."""
    weighted = len(source.item_values) > 0
    total = 0.0
    for p in range(source.item_indptr[j], source.item_indptr[j + 1]):
        value = users[source.item_users[p]]
        total += value * source.item_values[p] if weighted else value
    return total


@njit(nogil=True, cache=True)
def _clear(source, j, users):
    for p in range(source.item_indptr[j], source.item_indptr[j + 1]):
        users[source.item_users[p]] = 0.0
