"""Where targets end among their candidates: counts of scores above and equal, in compiled code.

Under ``full`` the candidates are the items that are allowed and not seen. Scores above a target's
are counted over all allowed items, in whatever way a form of scores counts fastest, and those of
the few that the user has seen are taken off again.

Shapes: B users, T targets of all of them, N items of the catalogue, n ≤ N items that a model of
dense scores knows. ``levels`` float32[T] are the targets' scores. Ids of N or more in ``seen`` are
passed over.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.arrays.lists import Lists


class TargetRanks(NamedTuple):
    """Where targets ended, int64[T] each, in the order of the targets.

    ``ranks`` is 1 + the candidates scored strictly above the target, or 0 where the target could
    not be ranked; ``ties`` counts the other candidates of the same score; ``candidates`` all of
    them, the target among them where it could be ranked.
    """

    ranks: np.ndarray
    ties: np.ndarray
    candidates: np.ndarray

    def only(self, ranked: np.ndarray) -> TargetRanks:
        """Return the ranks of the marked targets (bool[T]); the others could not be ranked."""
        return TargetRanks(self.ranks * ranked, self.ties * ranked, self.candidates)


class Counts(NamedTuple):
    """How many scores of some items are ``above`` and ``equal`` to each level, int64[T] each."""

    above: np.ndarray
    equal: np.ndarray


class Pool(NamedTuple):
    """The candidates of users under ``full``.

    ``hidden`` are the allowed items that each user has seen, once each; ``sizes`` int64[B] counts
    the candidates, which are the other allowed items; ``rankable`` bool[T] tells which targets are
    among them.
    """

    hidden: Lists
    sizes: np.ndarray
    rankable: np.ndarray


def pool_of(seen: Lists, allowed: np.ndarray, targets: Lists) -> Pool:
    """Return the candidates of users: what is ``allowed`` (bool[N]) and not ``seen``."""
    offsets, hidden, rankable = _hide(
        seen.offsets, seen.items, allowed, targets.offsets, targets.items
    )
    return Pool(Lists(offsets, hidden), np.count_nonzero(allowed) - np.diff(offsets), rankable)


def rank_in_pool(pool: Pool, targets: Lists, allowed: Counts, hidden: Counts) -> TargetRanks:
    """Return ranks of counts over all allowed items and over the hidden ones of the pool."""
    above, equal = allowed.above - hidden.above, allowed.equal - hidden.equal
    candidates = np.repeat(pool.sizes, np.diff(targets.offsets))
    return TargetRanks(1 + above, equal - 1, candidates).only(pool.rankable)


def unite(candidates: Lists, targets: Lists, num_items: int) -> Lists:
    """Return each user's targets and after them the user's other candidates, once each."""
    return Lists(
        *_unite(candidates.offsets, candidates.items, targets.offsets, targets.items, num_items)
    )


def rank_among(united: Lists, scores: np.ndarray, targets: Lists) -> TargetRanks:
    """Rank each target among all items of its user's list.

    Parameters
    ----------
    united
        Of :func:`unite`.
    scores : float32[nnz]
        Of the items of ``united``.
    targets
        Of B users, without repeats.
    """
    num_targets, sizes = np.diff(targets.offsets), np.diff(united.offsets)
    shift = np.repeat(united.offsets[:-1] - targets.offsets[:-1], num_targets)
    levels = scores[np.arange(targets.items.size) + shift]
    above, equal = count_within(united, scores, targets.offsets, levels)
    return TargetRanks(1 + above, equal - 1, np.repeat(sizes, num_targets))


def count_within(
    lists: Lists, scores: np.ndarray, target_offsets: np.ndarray, levels: np.ndarray
) -> Counts:
    """Count over the entries of each user's list, of which ``scores`` float32[nnz] are given."""
    return Counts(*_count_within(lists.offsets, scores, target_offsets, levels))


def count_sparse(
    offsets: np.ndarray,
    items: np.ndarray,
    values: np.ndarray,
    allowed: np.ndarray,
    target_offsets: np.ndarray,
    levels: np.ndarray,
) -> Counts:
    """Count over all allowed items, at levels above 0: those that are not listed score 0."""
    return Counts(*_count_sparse(offsets, items, values, allowed, target_offsets, levels))


def count_dense(
    values: np.ndarray, allowed: np.ndarray, target_offsets: np.ndarray, levels: np.ndarray
) -> tuple[Counts, int]:
    """Count over all allowed items, and return an item that scores NaN, -1 without one.

    At levels above -inf, which is what items score that the model does not know, from n on.
    """
    above, equal, unordered = _count_dense(values, allowed, target_offsets, levels)
    return Counts(above, equal), unordered


def count_shared(ascending: np.ndarray, levels: np.ndarray) -> Counts:
    """Count in ``ascending`` float32, the sorted scores of all allowed items that are known."""
    upto = np.searchsorted(ascending, levels, side="right")
    below = np.searchsorted(ascending, levels, side="left")
    return Counts(ascending.size - upto, upto - below)


def gather_sparse(
    offsets: np.ndarray, items: np.ndarray, values: np.ndarray, lists: Lists
) -> np.ndarray:
    """Return float32[nnz], the scores of the items in the lists; 0 where they are not listed."""
    return _gather_sparse(offsets, items, values, lists.offsets, lists.items)


@compiled_once()
@njit(cache=True, nogil=True)
def _hide(seen_offsets, seen, allowed, target_offsets, targets):
    num_users = seen_offsets.size - 1
    offsets = np.zeros(num_users + 1, np.int64)
    hidden = np.empty(seen.size, np.int32)
    rankable = np.zeros(targets.size, np.bool_)
    seen_by = np.full(allowed.size, -1, np.int32)
    end = 0
    for u in range(num_users):
        for p in range(seen_offsets[u], seen_offsets[u + 1]):
            item = seen[p]
            if item < allowed.size and seen_by[item] != u:
                seen_by[item] = u
                if allowed[item]:
                    hidden[end] = item
                    end += 1
        offsets[u + 1] = end
        for t in range(target_offsets[u], target_offsets[u + 1]):
            item = targets[t]
            rankable[t] = item < allowed.size and allowed[item] and seen_by[item] != u
    return offsets, hidden[:end], rankable


@compiled_once()
@njit(cache=True, nogil=True)
def _unite(list_offsets, items, target_offsets, targets, num_items):
    num_users = list_offsets.size - 1
    offsets = np.zeros(num_users + 1, np.int64)
    united = np.empty(items.size + targets.size, np.int32)
    listed_by = np.full(num_items, -1, np.int32)
    end = 0
    for u in range(num_users):
        for t in range(target_offsets[u], target_offsets[u + 1]):
            listed_by[targets[t]] = u
            united[end] = targets[t]
            end += 1
        for p in range(list_offsets[u], list_offsets[u + 1]):
            if listed_by[items[p]] != u:
                listed_by[items[p]] = u
                united[end] = items[p]
                end += 1
        offsets[u + 1] = end
    return offsets, united[:end]


@njit(cache=True, nogil=True)
def _count(scores, level):
    above, equal = 0, 0
    for score in scores:
        above += score > level
        equal += score == level
    return above, equal


@compiled_once()
@njit(cache=True, nogil=True)
def _count_within(offsets, scores, target_offsets, levels):
    above, equal = np.zeros(levels.size, np.int64), np.zeros(levels.size, np.int64)
    for u in range(target_offsets.size - 1):
        own = scores[offsets[u] : offsets[u + 1]]
        for t in range(target_offsets[u], target_offsets[u + 1]):
            above[t], equal[t] = _count(own, levels[t])
    return above, equal


@compiled_once()
@njit(cache=True, nogil=True)
def _count_sparse(offsets, items, values, allowed, target_offsets, levels):
    above, equal = np.zeros(levels.size, np.int64), np.zeros(levels.size, np.int64)
    kept = np.empty(allowed.size, np.float32)
    for u in range(target_offsets.size - 1):
        size = 0
        for p in range(offsets[u], offsets[u + 1]):
            kept[size] = values[p]
            size += allowed[items[p]]
        for t in range(target_offsets[u], target_offsets[u + 1]):
            above[t], equal[t] = _count(kept[:size], levels[t])
    return above, equal


@compiled_once()
@njit(cache=True, nogil=True)
def _count_dense(values, allowed, target_offsets, levels):
    above, equal = np.zeros(levels.size, np.int64), np.zeros(levels.size, np.int64)
    num_known = values.shape[1]
    unordered = -1
    for u in range(target_offsets.size - 1):
        row = values[u]
        for t in range(target_offsets[u], target_offsets[u + 1]):
            level = levels[t]
            num_above, num_equal, num_unordered = 0, 0, 0
            for item in range(num_known):
                num_above += (row[item] > level) & allowed[item]
                num_equal += (row[item] == level) & allowed[item]
                num_unordered += row[item] != row[item]
            above[t], equal[t] = num_above, num_equal
            if num_unordered > 0:
                unordered = int(np.argmax(np.isnan(row)))
    return above, equal, unordered


@compiled_once()
@njit(cache=True, nogil=True)
def _gather_sparse(offsets, items, values, list_offsets, wanted):
    num_items = 1
    for item in wanted:
        num_items = max(num_items, item + 1)
    score_of = np.zeros(num_items, np.float32)
    wanted_by = np.full(num_items, -1, np.int32)
    found = np.empty(wanted.size, np.float32)
    for u in range(list_offsets.size - 1):
        start, stop = list_offsets[u], list_offsets[u + 1]
        for p in range(start, stop):
            wanted_by[wanted[p]] = u
            score_of[wanted[p]] = 0.0
        for p in range(offsets[u], offsets[u + 1]):
            if items[p] < num_items and wanted_by[items[p]] == u:
                score_of[items[p]] = values[p]
        for p in range(start, stop):
            found[p] = score_of[wanted[p]]
    return found
