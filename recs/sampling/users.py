"""Negatives of whole users, as the candidates that a held-out item is ranked among."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from recs.sampling.groups import alias_table, drawable
from recs.sampling.hashing import hash_uniform

#: Random tries per wanted negative before the exact sweep over all items takes over.
_TRIES = 8


@njit(cache=True, nogil=True)
def _sweep(
    seed: int,
    user: int,
    draw: int,
    weights: np.ndarray,
    free: np.ndarray,
    wanted: int,
    repeats: bool,
) -> np.ndarray:
    """Draw up to ``wanted`` of the positions in ``free`` exactly, by their weights."""
    if free.size == 0 or (free.size <= wanted and not repeats):
        return free
    if repeats:
        cumulative = np.cumsum(weights[free])
        chosen = np.empty(wanted, free.dtype)
        for n in range(wanted):
            point = hash_uniform(seed, user, draw + n) * cumulative[-1]
            place = np.searchsorted(cumulative, point, side="right")
            chosen[n] = free[min(place, free.size - 1)]
        return chosen
    # The smallest of exponential variables with rates w_i are a draw without replacement by w_i.
    keys = np.empty(free.size)
    for n in range(free.size):
        u = hash_uniform(seed, user, draw + free[n])
        keys[n] = -np.log1p(-u) / weights[free[n]]
    return free[np.argsort(keys)[:wanted]]


@njit(cache=True, nogil=True)
def _draw(
    user_ids: np.ndarray,
    exclude_offsets: np.ndarray,
    exclude: np.ndarray,
    items: np.ndarray,
    weights: np.ndarray,
    accept: np.ndarray,
    alias: np.ndarray,
    size: int,
    repeats: bool,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    num_users = user_ids.size
    offsets = np.zeros(num_users + 1, np.int64)
    drawn = np.empty(num_users * size, np.int32)
    position = np.full(items[-1] + 1, -1, np.int32)
    position[items] = np.arange(items.size).astype(np.int32)
    taken_by = np.full(items.size, -1, np.int32)  # the row that may not take this position (again)
    limit = _TRIES * size + 32
    end = 0
    for row in range(num_users):
        user = user_ids[row]
        num_free = items.size
        for p in range(exclude_offsets[row], exclude_offsets[row + 1]):
            item = exclude[p]
            if 0 <= item < position.size and position[item] >= 0:
                taken_by[position[item]] = row
                num_free -= 1
        start = end
        tries = limit if num_free <= size else 0
        while end - start < size and tries < limit:
            # One uniform chooses the slot (its whole part) and slot or alias (its fraction).
            point = hash_uniform(seed, user, tries) * items.size
            slot = int(point)
            p = slot if point - slot < accept[slot] else alias[slot]
            tries += 1
            if taken_by[p] != row:
                drawn[end] = items[p]
                end += 1
                if not repeats:
                    taken_by[p] = row
        if end - start < size:
            free = np.flatnonzero((taken_by != row) & (weights > 0))
            for p in _sweep(seed, user, limit, weights, free, size - (end - start), repeats):
                drawn[end] = items[p]
                end += 1
        offsets[row + 1] = end
    return offsets, drawn[:end]


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws negatives among the recommendable items.

    Attributes
    ----------
    items : int32[n]
        Items that may be drawn, ascending.
    weights : float64[n]
        Their weights, up to a factor; an item of weight 0 is never drawn.
    accept, alias : float64[n], int32[n]
        The alias table of ``weights``.
    """

    items: np.ndarray
    weights: np.ndarray
    accept: np.ndarray
    alias: np.ndarray

    @classmethod
    def uniform(cls, recommendable: np.ndarray) -> Sampler:
        """Every item marked in ``recommendable`` (bool[N]) is drawn with the same probability."""
        return cls._of(recommendable, np.ones(len(recommendable)))

    @classmethod
    def popularity(
        cls, recommendable: np.ndarray, counts: np.ndarray, alpha: float = 1.0
    ) -> Sampler:
        """Items are drawn in proportion to ``counts ** alpha`` (int64[N], events in training)."""
        return cls._of(recommendable, np.asarray(counts, np.float64) ** alpha)

    @classmethod
    def _of(cls, recommendable: np.ndarray, weights: np.ndarray) -> Sampler:
        items = np.flatnonzero(recommendable).astype(np.int32)
        weights = drawable(np.ascontiguousarray(weights[items], np.float64))
        return cls(items, weights, *alias_table(weights))

    def sample(
        self,
        user_ids: np.ndarray,
        exclude: tuple[np.ndarray, np.ndarray],
        size: int,
        *,
        seed: int,
        repeats: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``size`` negatives for each user of a block.

        A user draws at most a bounded number of times; what is missing then is drawn exactly from
        the items left to them. Users who have fewer items left than ``size`` end with fewer
        (with ``repeats``: only those who have none left).

        Parameters
        ----------
        user_ids : int[B]
            Dense user ids; the key of each user's randomness.
        exclude : (int64[B+1], int32[nnz])
            Offsets and items that each user never gets; a user's items without repeats.
        size
            Negatives wanted per user.
        seed
            Another seed, other negatives.
        repeats
            Whether a user may get an item twice (training) or not (evaluation).

        Returns
        -------
        offsets : int64[B+1]
        items : int32[nnz]
            In order of drawing.
        """
        offsets, items = exclude
        return _draw(
            np.asarray(user_ids, np.int64),
            np.asarray(offsets, np.int64),
            np.asarray(items, np.int32),
            self.items,
            self.weights,
            self.accept,
            self.alias,
            size,
            repeats,
            seed,
        )
