"""Top-k, ranks and look-ups over a block of users' scores, in compiled code.

The work on sparse scores is in proportion to the scores listed, on shared scores to what the users
have seen: items that score zero, or what all users have in common, are counted in closed form.

Shapes: B users, N items of the catalogue, n ≤ N items that a model of dense scores knows. Ids are
dense; ids of N or more in ``seen`` are passed over.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from recs.arrays.lists import Lists
from recs.ranking.scoring import DenseScores, Scores, SharedScores, SparseScores


class Ranks(NamedTuple):
    """Where targets ended, int64[T] each, in the order of the targets.

    ``ranks`` is 1 + the candidates scored strictly above the target, or 0 where the target could
    not be ranked; ``ties`` counts the other candidates of the same score; ``candidates`` all of
    them, the target among them.
    """

    ranks: np.ndarray
    ties: np.ndarray
    candidates: np.ndarray


def top_k(scores: Scores, seen: Lists, allowed: np.ndarray, k: int) -> Lists:
    """Return each user's k best items, best first; equal scores in ascending order of item_id.

    Parameters
    ----------
    scores
        Of B users. Of sparse scores only those above 0 are recommended, of others all but -inf.
    seen
        Items never to be recommended, of B users.
    allowed : bool[N]
        Items that may be recommended.
    k
        Length of the lists; shorter where there are fewer such items.
    """
    if isinstance(scores, SparseScores):
        return Lists(*_top_k_sparse(*scores, seen.offsets, seen.items, allowed, k))
    if isinstance(scores, DenseScores):
        return Lists(*_top_k_dense(scores.values, seen.offsets, seen.items, allowed, k))
    items = np.flatnonzero(allowed[: scores.values.size] & (scores.values > -np.inf))
    order = items[np.argsort(-scores.values[items], kind="stable")].astype(np.int32)
    return Lists(*_top_k_shared(scores.values, order, seen.offsets, seen.items, allowed.size, k))


def rank_targets(scores: Scores, seen: Lists, allowed: np.ndarray, targets: Lists) -> Ranks:
    """Rank each target among all allowed items that its user has not seen.

    A target that the user has seen stays a candidate, and so do all targets of a user for each
    other. A target that is not allowed is not ranked, nor is one of a user to whom a sparse model
    gives no score at all.

    Parameters
    ----------
    scores, seen, allowed
        As in :func:`top_k`.
    targets
        Of B users, without repeats.
    """
    of_targets = gather(scores, targets)
    lists = seen.offsets, seen.items, allowed, targets.offsets, targets.items, of_targets
    if isinstance(scores, SparseScores):
        return Ranks(*_rank_sparse(*scores, *lists))
    values = scores.values
    if values.shape[-1] < allowed.size:  # items that the model does not know come last
        padding = [(0, 0)] * (values.ndim - 1) + [(0, allowed.size - values.shape[-1])]
        values = np.pad(values, padding, constant_values=-np.inf)
    if isinstance(scores, DenseScores):
        return Ranks(*_rank_dense(values, *lists))
    return Ranks(*_rank_shared(values, np.sort(values[allowed]), *lists))


def rank_among(scores: Scores, candidates: Lists, targets: Lists, num_items: int) -> Ranks:
    """Rank each target among its user's candidates, which need not be recommendable.

    Candidates are the distinct items of the user's list and all their targets. Nothing is ranked
    for a user to whom a sparse model gives no score at all, or whose list is empty.
    """
    return Ranks(
        *_rank_among(
            candidates.offsets,
            candidates.items,
            gather(scores, candidates),
            targets.offsets,
            targets.items,
            gather(scores, targets),
            gives_nothing(scores, targets.num_rows),
            num_items,
        )
    )


def gather(scores: Scores, lists: Lists) -> np.ndarray:
    """Return float32[nnz], the scores of the items in the lists of B users."""
    if isinstance(scores, SparseScores):
        return _gather_sparse(*scores, lists.offsets, lists.items)
    values = scores.values
    known = lists.items < values.shape[-1]
    found = np.full(lists.items.size, -np.inf, np.float32)
    if isinstance(scores, SharedScores):
        found[known] = values[lists.items[known]]
    else:
        rows = np.repeat(np.arange(lists.num_rows), np.diff(lists.offsets))
        found[known] = values[rows[known], lists.items[known]]
    return found


def gives_nothing(scores: Scores, num_rows: int) -> np.ndarray:
    """Return bool[B]: users for whom a sparse model has no score other than 0."""
    if not isinstance(scores, SparseScores):
        return np.zeros(num_rows, bool)
    nonzero = np.zeros(scores.values.size + 1, np.int64)
    np.cumsum(scores.values != 0, out=nonzero[1:])
    return nonzero[scores.offsets[1:]] == nonzero[scores.offsets[:-1]]


@njit(cache=True, nogil=True)
def _worse(score: float, item: int, other_score: float, other_item: int) -> bool:
    return score < other_score or (score == other_score and item > other_item)


@njit(cache=True, nogil=True)
def _sift_down(scores: np.ndarray, items: np.ndarray, size: int) -> None:
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
def _offer(scores: np.ndarray, items: np.ndarray, size: int, score: float, item: int) -> int:
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
def _drain(
    scores: np.ndarray,
    items: np.ndarray,
    size: int,
    out_items: np.ndarray,
    out_scores: np.ndarray,
    start: int,
) -> int:
    """Empty the heap into the output, best first; return where the output ends."""
    for left in range(size, 0, -1):
        out_items[start + left - 1], out_scores[start + left - 1] = items[0], scores[0]
        scores[0], items[0] = scores[left - 1], items[left - 1]
        _sift_down(scores, items, left - 1)
    return start + size


@njit(cache=True, nogil=True)
def _mark(marks: np.ndarray, items: np.ndarray, start: int, stop: int, row: int) -> None:
    for p in range(start, stop):
        if items[p] < marks.size:
            marks[items[p]] = row


@njit(cache=True, nogil=True)
def _top_k_sparse(
    offsets: np.ndarray,
    items: np.ndarray,
    values: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    allowed: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num_users = offsets.size - 1
    out_offsets = np.zeros(num_users + 1, np.int64)
    out_items = np.empty(num_users * k, np.int32)
    out_scores = np.empty(num_users * k, np.float32)
    seen_by = np.full(allowed.size, -1, np.int32)
    best_scores, best_items = np.empty(k, np.float32), np.empty(k, np.int32)
    for u in range(num_users):
        _mark(seen_by, seen, seen_offsets[u], seen_offsets[u + 1], u)
        size = 0
        for p in range(offsets[u], offsets[u + 1]):
            item, score = items[p], values[p]
            if score > 0 and allowed[item] and seen_by[item] != u:
                size = _offer(best_scores, best_items, size, score, item)
        start = out_offsets[u]
        out_offsets[u + 1] = _drain(best_scores, best_items, size, out_items, out_scores, start)
    end = out_offsets[num_users]
    return out_offsets, out_items[:end], out_scores[:end]


@njit(cache=True, nogil=True)
def _top_k_dense(
    values: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    allowed: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num_users = values.shape[0]
    out_offsets = np.zeros(num_users + 1, np.int64)
    out_items = np.empty(num_users * k, np.int32)
    out_scores = np.empty(num_users * k, np.float32)
    seen_by = np.full(allowed.size, -1, np.int32)
    best_scores, best_items = np.empty(k, np.float32), np.empty(k, np.int32)
    for u in range(num_users):
        _mark(seen_by, seen, seen_offsets[u], seen_offsets[u + 1], u)
        size = 0
        for item in range(values.shape[1]):
            score = values[u, item]
            if score > -np.inf and allowed[item] and seen_by[item] != u:
                size = _offer(best_scores, best_items, size, score, item)
        start = out_offsets[u]
        out_offsets[u + 1] = _drain(best_scores, best_items, size, out_items, out_scores, start)
    end = out_offsets[num_users]
    return out_offsets, out_items[:end], out_scores[:end]


@njit(cache=True, nogil=True)
def _top_k_shared(
    values: np.ndarray,
    order: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    num_items: int,
    k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``order``: the items that may be recommended, best first."""
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


@njit(cache=True, nogil=True)
def _tally(levels: np.ndarray, above: np.ndarray, reach: np.ndarray, score: float, n: int) -> None:
    """Count ``n`` candidates of one score against a user's target scores, ``levels`` ascending.

    ``above[l]`` gathers candidates that beat exactly the l lowest levels, ``reach[l]`` those that
    beat or equal them.
    """
    beaten = np.searchsorted(levels, score, side="left")
    above[beaten] += n
    reached = beaten
    while reached < levels.size and levels[reached] == score:
        reached += 1
    reach[reached] += n


@njit(cache=True, nogil=True)
def _settle(
    order: np.ndarray,
    above: np.ndarray,
    reach: np.ndarray,
    start: int,
    num_candidates: int,
    ranks: np.ndarray,
    ties: np.ndarray,
    candidates: np.ndarray,
) -> None:
    """Turn the tallies into ranks; ``order[l]`` is the place of level l's target."""
    num_above, num_reach = 0, 0
    for level in range(order.size - 1, -1, -1):
        num_above += above[level + 1]
        num_reach += reach[level + 1]
        t = start + order[level]
        ranks[t] = 1 + num_above
        ties[t] = num_reach - num_above - 1
        candidates[t] = num_candidates


@njit(cache=True, nogil=True)
def _levels(
    targets: np.ndarray, scores: np.ndarray, allowed: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of a user's rankable targets, ascending by score, and the scores."""
    places = np.empty(stop - start, np.int64)
    size = 0
    for t in range(start, stop):
        if targets[t] < allowed.size and allowed[targets[t]]:
            places[size] = t - start
            size += 1
    places = places[:size]
    levels = scores[start + places]
    order = np.argsort(levels)
    return places[order], levels[order]


@njit(cache=True, nogil=True)
def _count_seen(
    seen: np.ndarray,
    start: int,
    stop: int,
    allowed: np.ndarray,
    seen_by: np.ndarray,
    target_of: np.ndarray,
    u: int,
) -> int:
    """Mark what user u has seen; return how many of these are taken out of the candidates."""
    count = 0
    for p in range(start, stop):
        item = seen[p]
        if item < allowed.size and seen_by[item] != u and target_of[item] != u:
            seen_by[item] = u
            if allowed[item]:
                count += 1
    return count


@njit(cache=True, nogil=True)
def _rank_sparse(
    offsets: np.ndarray,
    items: np.ndarray,
    values: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    allowed: np.ndarray,
    target_offsets: np.ndarray,
    targets: np.ndarray,
    target_scores: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num_users = target_offsets.size - 1
    ranks = np.zeros(targets.size, np.int64)
    ties = np.zeros(targets.size, np.int64)
    candidates = np.zeros(targets.size, np.int64)
    num_allowed = np.sum(allowed)
    seen_by = np.full(allowed.size, -1, np.int32)
    target_of = np.full(allowed.size, -1, np.int32)
    for u in range(num_users):
        start, stop = target_offsets[u], target_offsets[u + 1]
        _mark(target_of, targets, start, stop, u)
        num_candidates = num_allowed - _count_seen(
            seen, seen_offsets[u], seen_offsets[u + 1], allowed, seen_by, target_of, u
        )
        candidates[start:stop] = num_candidates
        order, levels = _levels(targets, target_scores, allowed, start, stop)
        above = np.zeros(levels.size + 1, np.int64)
        reach = np.zeros(levels.size + 1, np.int64)
        num_listed, nothing = 0, True
        for p in range(offsets[u], offsets[u + 1]):
            item = items[p]
            nothing &= values[p] == 0
            if allowed[item] and seen_by[item] != u:
                num_listed += 1
                _tally(levels, above, reach, values[p], 1)
        if nothing:
            continue
        _tally(levels, above, reach, 0.0, num_candidates - num_listed)
        _settle(order, above, reach, start, num_candidates, ranks, ties, candidates)
    return ranks, ties, candidates


@njit(cache=True, nogil=True)
def _rank_dense(
    values: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    allowed: np.ndarray,
    target_offsets: np.ndarray,
    targets: np.ndarray,
    target_scores: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num_users = target_offsets.size - 1
    ranks = np.zeros(targets.size, np.int64)
    ties = np.zeros(targets.size, np.int64)
    candidates = np.zeros(targets.size, np.int64)
    num_allowed = np.sum(allowed)
    seen_by = np.full(allowed.size, -1, np.int32)
    target_of = np.full(allowed.size, -1, np.int32)
    for u in range(num_users):
        start, stop = target_offsets[u], target_offsets[u + 1]
        _mark(target_of, targets, start, stop, u)
        num_candidates = num_allowed - _count_seen(
            seen, seen_offsets[u], seen_offsets[u + 1], allowed, seen_by, target_of, u
        )
        candidates[start:stop] = num_candidates
        order, levels = _levels(targets, target_scores, allowed, start, stop)
        above = np.zeros(levels.size + 1, np.int64)
        reach = np.zeros(levels.size + 1, np.int64)
        for item in range(allowed.size):
            if allowed[item] and seen_by[item] != u:
                _tally(levels, above, reach, values[u, item], 1)
        _settle(order, above, reach, start, num_candidates, ranks, ties, candidates)
    return ranks, ties, candidates


@njit(cache=True, nogil=True)
def _rank_shared(
    values: np.ndarray,
    ascending: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    allowed: np.ndarray,
    target_offsets: np.ndarray,
    targets: np.ndarray,
    target_scores: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``ascending``: the scores of all allowed items; what a user has seen is counted off."""
    num_users = target_offsets.size - 1
    ranks = np.zeros(targets.size, np.int64)
    ties = np.zeros(targets.size, np.int64)
    candidates = np.zeros(targets.size, np.int64)
    seen_by = np.full(allowed.size, -1, np.int32)
    target_of = np.full(allowed.size, -1, np.int32)
    for u in range(num_users):
        start, stop = target_offsets[u], target_offsets[u + 1]
        _mark(target_of, targets, start, stop, u)
        order, levels = _levels(targets, target_scores, allowed, start, stop)
        above = np.zeros(levels.size + 1, np.int64)
        reach = np.zeros(levels.size + 1, np.int64)
        num_candidates = ascending.size
        for p in range(seen_offsets[u], seen_offsets[u + 1]):
            item = seen[p]
            if item >= allowed.size or not allowed[item]:
                continue
            if seen_by[item] != u and target_of[item] != u:
                seen_by[item] = u
                num_candidates -= 1
                _tally(levels, above, reach, values[item], -1)
        candidates[start:stop] = num_candidates
        # Level l is beaten by all above it: the top takes those, each lower one its difference.
        higher_above, higher_reach = 0, 0
        for level in range(levels.size - 1, -1, -1):
            num_above = ascending.size - np.searchsorted(ascending, levels[level], side="right")
            num_reach = ascending.size - np.searchsorted(ascending, levels[level], side="left")
            above[level + 1] += num_above - higher_above
            reach[level + 1] += num_reach - higher_reach
            higher_above, higher_reach = num_above, num_reach
        _settle(order, above, reach, start, num_candidates, ranks, ties, candidates)
    return ranks, ties, candidates


@njit(cache=True, nogil=True)
def _rank_among(
    list_offsets: np.ndarray,
    items: np.ndarray,
    item_scores: np.ndarray,
    target_offsets: np.ndarray,
    targets: np.ndarray,
    target_scores: np.ndarray,
    nothing: np.ndarray,
    num_items: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num_users = target_offsets.size - 1
    ranks = np.zeros(targets.size, np.int64)
    ties = np.zeros(targets.size, np.int64)
    candidates = np.zeros(targets.size, np.int64)
    counted_for = np.full(num_items, -1, np.int32)
    for u in range(num_users):
        start, stop = target_offsets[u], target_offsets[u + 1]
        order = np.argsort(target_scores[start:stop])
        levels = target_scores[start:stop][order]
        above = np.zeros(levels.size + 1, np.int64)
        reach = np.zeros(levels.size + 1, np.int64)
        num_candidates = stop - start
        for t in range(start, stop):
            counted_for[targets[t]] = u
            _tally(levels, above, reach, target_scores[t], 1)
        for p in range(list_offsets[u], list_offsets[u + 1]):
            if counted_for[items[p]] != u:
                counted_for[items[p]] = u
                num_candidates += 1
                _tally(levels, above, reach, item_scores[p], 1)
        candidates[start:stop] = num_candidates
        if list_offsets[u] < list_offsets[u + 1] and not nothing[u]:
            _settle(order, above, reach, start, num_candidates, ranks, ties, candidates)
    return ranks, ties, candidates


@njit(cache=True, nogil=True)
def _gather_sparse(
    offsets: np.ndarray,
    items: np.ndarray,
    values: np.ndarray,
    list_offsets: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    """Look scores up by writing a user's wanted items into a row over all items, and off again."""
    num_items = 1
    for item in wanted:
        num_items = max(num_items, item + 1)
    row = np.zeros(num_items, np.float32)
    found = np.empty(wanted.size, np.float32)
    for u in range(list_offsets.size - 1):
        for p in range(offsets[u], offsets[u + 1]):
            if items[p] < num_items:
                row[items[p]] = values[p]
        for p in range(list_offsets[u], list_offsets[u + 1]):
            found[p] = row[wanted[p]]
        for p in range(offsets[u], offsets[u + 1]):
            if items[p] < num_items:
                row[items[p]] = 0.0
    return found
