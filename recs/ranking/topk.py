"""Each user's k best items of a block of scores, in compiled code.

Shapes: B users, N items of the catalogue, n ≤ N items that a model of dense scores knows. Equal
scores are in ascending order of item_id. Ids of N or more in ``seen`` are passed over.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.arrays.lists import Lists


def top_k_sparse(
    offsets: np.ndarray,
    items: np.ndarray,
    values: np.ndarray,
    seen: Lists,
    allowed: np.ndarray,
    k: int,
) -> Lists:
    """Return the best of the items that score above 0; the work is in proportion to those listed.

    Parameters
    ----------
    offsets, items, values
        As in :class:`recs.ranking.scoring.SparseScores`.
    seen, allowed, k
        As in :meth:`recs.ranking.scoring.Scores.top_k`.
    """
    return Lists(*_top_k_sparse(offsets, items, values, seen.offsets, seen.items, allowed, k))


def top_k_dense(values: np.ndarray, seen: Lists, allowed: np.ndarray, k: int) -> tuple[Lists, int]:
    """Return the best items that do not score -inf, and an item that scores NaN, -1 without one.

    Parameters
    ----------
    values : float32[B, n]
    """
    *lists, unordered = _top_k_dense(values, seen.offsets, seen.items, allowed, k)
    return Lists(*lists), unordered


def top_k_shared(
    values: np.ndarray, order: np.ndarray, seen: Lists, num_items: int, k: int
) -> Lists:
    """Return the first items of ``order`` that each user has not seen.

    Parameters
    ----------
    values : float32[n]
    order : int32
        The items that may be recommended, best first.
    """
    return Lists(*_top_k_shared(values, order, seen.offsets, seen.items, num_items, k))


@njit(cache=True, nogil=True)
def _worse(score, item, other_score, other_item):
    return score < other_score or (score == other_score and item > other_item)


@njit(cache=True, nogil=True)
def _sift_down(scores, items, size):
    """Restore a heap whose root, the worst of the best, has changed."""
    root = 0
    while True:
        child = 2 * root + 1
        if child >= size:
            return
        other = child + 1
        if other < size and _worse(scores[other], items[other], scores[child], items[child]):
            child = other
        if not _worse(scores[child], items[child], scores[root], items[root]):
            return
        scores[root], scores[child] = scores[child], scores[root]
        items[root], items[child] = items[child], items[root]
        root = child


@njit(cache=True, nogil=True)
def _offer(scores, items, size, score, item):
    """Put (score, item) among the best if it belongs there; return how many there are."""
    if size == scores.size:
        if _worse(scores[0], items[0], score, item):
            scores[0], items[0] = score, item
            _sift_down(scores, items, size)
        return size
    place = size
    while place > 0:
        parent = (place - 1) // 2
        if not _worse(score, item, scores[parent], items[parent]):
            break
        scores[place], items[place] = scores[parent], items[parent]
        place = parent
    scores[place], items[place] = score, item
    return size + 1


@njit(cache=True, nogil=True)
def _drain(scores, items, size, out_items, out_scores, start):
    """Empty the heap into the output, best first; return where the output ends."""
    for left in range(size, 0, -1):
        out_items[start + left - 1], out_scores[start + left - 1] = items[0], scores[0]
        scores[0], items[0] = scores[left - 1], items[left - 1]
        _sift_down(scores, items, left - 1)
    return start + size


@njit(cache=True, nogil=True)
def _mark(marks, items, start, stop, row):
    for p in range(start, stop):
        if items[p] < marks.size:
            marks[items[p]] = row


@compiled_once()
@njit(cache=True, nogil=True)
def _top_k_sparse(offsets, items, values, seen_offsets, seen, allowed, k):
    num_users = offsets.size - 1
    out_offsets = np.zeros(num_users + 1, np.int64)
    out_items = np.empty(num_users * k, np.int32)
    out_scores = np.empty(num_users * k, np.float32)
    seen_by = np.full(allowed.size, -1, np.int32)
    best_scores, best_items = np.empty(k, np.float32), np.empty(k, np.int32)
    for u in range(num_users):
        _mark(seen_by, seen, seen_offsets[u], seen_offsets[u + 1], u)
        size, worst = 0, np.float32(0)
        for p in range(offsets[u], offsets[u + 1]):
            item, score = items[p], values[p]
            # Most scores are below the worst of k: that is asked first.
            if score >= worst and score > 0 and allowed[item] and seen_by[item] != u:
                size = _offer(best_scores, best_items, size, score, item)
                if size == k:
                    worst = best_scores[0]
        start = out_offsets[u]
        out_offsets[u + 1] = _drain(best_scores, best_items, size, out_items, out_scores, start)
    end = out_offsets[num_users]
    return out_offsets, out_items[:end], out_scores[:end]


@compiled_once()
@njit(cache=True, nogil=True)
def _top_k_dense(values, seen_offsets, seen, allowed, k):
    num_users, num_known = values.shape
    out_offsets = np.zeros(num_users + 1, np.int64)
    out_items = np.empty(num_users * k, np.int32)
    out_scores = np.empty(num_users * k, np.float32)
    seen_by = np.full(allowed.size, -1, np.int32)
    best_scores, best_items = np.empty(k, np.float32), np.empty(k, np.int32)
    unordered = -1
    for u in range(num_users):
        _mark(seen_by, seen, seen_offsets[u], seen_offsets[u + 1], u)
        size, worst = 0, np.float32(-np.inf)
        for item in range(num_known):
            score = values[u, item]
            # Items come in ascending order: one that equals the worst of k is behind it.
            if score > worst:
                if allowed[item] and seen_by[item] != u:
                    size = _offer(best_scores, best_items, size, score, item)
                    if size == k:
                        worst = best_scores[0]
            elif score != score:
                unordered = item
        start = out_offsets[u]
        out_offsets[u + 1] = _drain(best_scores, best_items, size, out_items, out_scores, start)
    end = out_offsets[num_users]
    return out_offsets, out_items[:end], out_scores[:end], unordered


@compiled_once()
@njit(cache=True, nogil=True)
def _top_k_shared(values, order, seen_offsets, seen, num_items, k):
    num_users = seen_offsets.size - 1
    out_offsets = np.zeros(num_users + 1, np.int64)
    out_items = np.empty(num_users * min(k, order.size), np.int32)
    seen_by = np.full(num_items, -1, np.int32)
    end = 0
    for u in range(num_users):
        _mark(seen_by, seen, seen_offsets[u], seen_offsets[u + 1], u)
        for item in order:
            if end - out_offsets[u] == k:
                break
            if seen_by[item] != u:
                out_items[end] = item
                end += 1
        out_offsets[u + 1] = end
    return out_offsets, out_items[:end], values[out_items[:end]]
