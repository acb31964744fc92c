"""The one form that every model scores through.

On the driver a model is a :class:`Recommender`: a small, picklable, hashable handle that names
files on shared storage. On a worker it opens, once a task, into a :class:`Scorer`, which takes the
histories of users and answers three questions: the scores of all items, those of some items, and
the best items. Each has its own verb, and the last two are answered by the first unless a model has
a better way: an index of neighbours gives lists only, a ranker with features scores pairs only.

Shapes: B users, T targets of all of them, N items of the catalogue, n ≤ N items that a model knows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from recs.arrays.lists import Lists, blocks
from recs.ranking.ranks import (
    Counts,
    TargetRanks,
    count_dense,
    count_shared,
    count_sparse,
    count_within,
    gather_sparse,
    pool_of,
    rank_in_pool,
)
from recs.ranking.topk import top_k_dense, top_k_shared, top_k_sparse

#: Numbers of scores held at once by a worker; with their items, at most 64 MB.
BLOCK_SCORES = 8_000_000


class NotANumber(ValueError):
    """A score is NaN, so that nothing can be ranked."""

    def __init__(self, item: int) -> None:
        super().__init__(f"item {item} scores NaN")
        self.item = item


class Scores(ABC):
    """Scores of all items for a block of B users.

    Attributes
    ----------
    floor
        Lists hold only items that score above it.
    """

    floor: ClassVar[float] = -math.inf

    @abstractmethod
    def top_k(self, seen: Lists, allowed: np.ndarray, k: int) -> Lists:
        """Return each user's k best items, best first; equal scores in ascending order of item_id.

        Parameters
        ----------
        seen
            Items never to be recommended, of B users.
        allowed : bool[N]
            Items that may be recommended.
        k
            Length of the lists; shorter where there are fewer such items.

        Raises
        ------
        NotANumber
            If a score is NaN.
        """

    @abstractmethod
    def gather(self, lists: Lists) -> np.ndarray:
        """Return float32[nnz], the scores of the items in the lists of B users."""

    @abstractmethod
    def _count(self, allowed: np.ndarray, targets: Lists, levels: np.ndarray) -> Counts:
        """Count the scores of all allowed items above and equal to each target's, ``levels``.

        At levels that are not above :attr:`floor` the counts are of no use.
        """

    def rank(self, seen: Lists, allowed: np.ndarray, targets: Lists) -> TargetRanks:
        """Rank each target among all allowed items that its user has not seen.

        A target that is not among them, or does not score above :attr:`floor`, is not ranked, for
        no list of any length holds it. All targets of a user are candidates for each other.

        Parameters
        ----------
        seen, allowed
            As in :meth:`top_k`.
        targets
            Of B users, without repeats.

        Raises
        ------
        NotANumber
            If a score is NaN.
        """
        pool = pool_of(seen, allowed, targets)
        levels = self.gather(targets)
        counted = self._count(allowed, targets, levels)
        hidden = count_within(pool.hidden, self.gather(pool.hidden), targets.offsets, levels)
        return rank_in_pool(pool, targets, counted, hidden).only(levels > self.floor)


@dataclass(frozen=True, eq=False)
class SparseScores(Scores):
    """Scores of the listed items; every other item scores 0.

    ``offsets`` int64[B+1], ``items`` int32[nnz] (distinct within a user, in any order), ``values``
    float32[nnz]. Only items that score above 0 are recommended.
    """

    floor: ClassVar[float] = 0.0
    offsets: np.ndarray
    items: np.ndarray
    values: np.ndarray

    def top_k(self, seen: Lists, allowed: np.ndarray, k: int) -> Lists:
        self._require_numbers()
        return top_k_sparse(self.offsets, self.items, self.values, seen, allowed, k)

    def gather(self, lists: Lists) -> np.ndarray:
        return gather_sparse(self.offsets, self.items, self.values, lists)

    def _count(self, allowed: np.ndarray, targets: Lists, levels: np.ndarray) -> Counts:
        self._require_numbers()
        listed = self.offsets, self.items, self.values
        return count_sparse(*listed, allowed, targets.offsets, levels)

    def _require_numbers(self) -> None:
        unordered = np.isnan(self.values)
        if unordered.any():
            raise NotANumber(int(self.items[np.argmax(unordered)]))


@dataclass(frozen=True, eq=False)
class DenseScores(Scores):
    """``values`` float32[B, n]: a score for each user and each of the n items that the model knows.

    A score of -inf means that the item is never recommended; so do ids from n on.
    """

    values: np.ndarray

    def top_k(self, seen: Lists, allowed: np.ndarray, k: int) -> Lists:
        lists, unordered = top_k_dense(self.values, seen, allowed, k)
        if unordered >= 0:
            raise NotANumber(unordered)
        return lists

    def gather(self, lists: Lists) -> np.ndarray:
        rows = np.repeat(np.arange(lists.num_rows), np.diff(lists.offsets))
        known = lists.items < self.values.shape[1]
        found = np.full(lists.items.size, -np.inf, np.float32)
        found[known] = self.values[rows[known], lists.items[known]]
        return found

    def _count(self, allowed: np.ndarray, targets: Lists, levels: np.ndarray) -> Counts:
        counts, unordered = count_dense(self.values, allowed, targets.offsets, levels)
        if unordered >= 0:
            raise NotANumber(unordered)
        return counts


class SharedScores(Scores):
    """``values`` float32[n]: one score an item, the same for all users; else as DenseScores.

    All scores are sorted once for as long as ``allowed`` is the same array.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self._allowed: np.ndarray | None = None
        self._best_first = np.empty(0, np.int32)
        self._ascending = np.empty(0, np.float32)

    def top_k(self, seen: Lists, allowed: np.ndarray, k: int) -> Lists:
        self._sort(allowed)
        return top_k_shared(self.values, self._best_first, seen, allowed.size, k)

    def gather(self, lists: Lists) -> np.ndarray:
        known = lists.items < self.values.size
        found = np.full(lists.items.size, -np.inf, np.float32)
        found[known] = self.values[lists.items[known]]
        return found

    def _count(self, allowed: np.ndarray, targets: Lists, levels: np.ndarray) -> Counts:
        self._sort(allowed)
        return count_shared(self._ascending, levels)

    def _sort(self, allowed: np.ndarray) -> None:
        """Make ``_best_first``, which may be recommended, and ``_ascending``, all known scores."""
        if self._allowed is allowed:
            return
        unordered = np.isnan(self.values)
        if unordered.any():
            raise NotANumber(int(np.argmax(unordered)))
        items = np.flatnonzero(allowed[: self.values.size])
        order = items[np.argsort(-self.values[items], kind="stable")].astype(np.int32)
        self._best_first = order[self.values[order] > -np.inf]
        self._ascending = self.values[order[::-1]]
        self._allowed = allowed


class Reasons(NamedTuple):
    """Why items were recommended: per recommendation the history items that weighed most.

    ``items`` int32[n, c], -1 where there are fewer, and ``shares`` float32[n, c], each the share
    of the recommendation's score that came from that history item, largest first.
    """

    items: np.ndarray
    shares: np.ndarray


class Scorer(ABC):
    """A model on a worker."""

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Items that the model knows; ids from there on are unknown to it."""

    def sizes(self, histories: Lists) -> np.ndarray:
        """Return int64[B], an upper bound of the numbers that are held at once per user."""
        return np.full(histories.num_rows, self.num_items)

    def scores(self, histories: Lists) -> Scores:
        """Return the scores of all items for a block of users, given what each has interacted with.

        Raises
        ------
        NotImplementedError
            If the model gives lists or scores of pairs only.
        """
        raise NotImplementedError(f"{type(self).__name__} does not score all items")

    def pairs(self, histories: Lists, candidates: Lists) -> np.ndarray:
        """Return float32[nnz], the scores of each user's candidates: any number of B users.

        Items to which a sparse model gives no score have 0, those that a model does not know -inf.
        """
        found = np.empty(candidates.items.size, np.float32)
        for start, stop in blocks(self.sizes(histories), BLOCK_SCORES):
            scores = self.scores(histories.rows(start, stop))
            entries = slice(candidates.offsets[start], candidates.offsets[stop])
            found[entries] = scores.gather(candidates.rows(start, stop))
        return found

    def top(self, histories: Lists, seen: Lists, allowed: np.ndarray, k: int) -> Lists:
        """Return the k best items of each of a block of users; see :meth:`Scores.top_k`."""
        return self.scores(histories).top_k(seen, allowed, k)

    def gives_nothing(self, histories: Lists) -> np.ndarray:
        """Return bool[B]: users to whom the model has nothing to say; those without a history.

        They get no list of the model, and their targets are not ranked.
        """
        return np.diff(histories.offsets) == 0

    def reasons(self, histories: Lists, recommended: Lists, count: int) -> Reasons:
        """Return up to ``count`` reasons for each entry of ``recommended``; none by default."""
        shape = recommended.items.size, count
        return Reasons(np.full(shape, -1, np.int32), np.zeros(shape, np.float32))


class Recommender(Protocol):
    """A model on the driver: picklable, hashable, and equal to another of the same files."""

    @property
    def name(self) -> str: ...

    def open(self) -> Scorer:
        """Open the model on a worker; called once a task, so keep in the process what is dear."""
