"""Descent on a working set: a few items with their own small, contiguous copy of G."""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"contract", "reassoc", "nsz"}


@njit(nogil=True, cache=True, inline="always")
def violation(r, w, l2):
    """How far a weight is from its optimality condition."""
    return abs(r - l2 * w) if w > 0 else max(0.0, r)


@njit(nogil=True, cache=True, fastmath=FAST)
def least_of_largest(gains, wanted):
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
def descend(sub, d, l2, r, w, size, limit, max_passes):
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
                residual = max(residual, violation(r[a], w[a], l2))
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
