"""Negatives of whole users, as the candidates that a held-out item is ranked among."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.sampling.draws import Workspace, draw_by_tries, draw_exactly, num_tries, workspace
from recs.sampling.groups import Groups, group_items
from recs.sampling.hashing import POPULAR_CANDIDATES, UNIFORM_CANDIDATES, hash_stream


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws negatives among the recommendable items.

    Attributes
    ----------
    groups
        One group of all items, with their weights.
    purpose
        Of :mod:`recs.sampling.hashing`: samplers of different purposes draw nothing in common.
    """

    groups: Groups
    purpose: int

    @classmethod
    def uniform(cls, recommendable: np.ndarray, *, purpose: int = UNIFORM_CANDIDATES) -> Sampler:
        """Every item marked in ``recommendable`` (bool[N]) is drawn with the same probability."""
        return cls(group_items(recommendable * 1.0), purpose)

    @classmethod
    def popularity(
        cls,
        recommendable: np.ndarray,
        counts: np.ndarray,
        alpha: float = 1.0,
        *,
        purpose: int = POPULAR_CANDIDATES,
    ) -> Sampler:
        """Items are drawn in proportion to ``counts ** alpha`` (int64[N]).

        Candidates are drawn by the counts of events that models are fitted on. That departs from
        BERT4Rec (Sun et al. 2019), whose code counts the held-out events too.
        """
        return cls(group_items(recommendable * np.asarray(counts, np.float64) ** alpha), purpose)

    def sample(
        self,
        user_ids: np.ndarray,
        exclude: tuple[np.ndarray, np.ndarray],
        size: int,
        *,
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``size`` different negatives for each user of a block.

        A user draws at most a bounded number of times; what is missing then is drawn exactly from
        the items left to them. Users who have fewer items left than ``size`` get all of these:
        fewer, or none. A target without any competitor is at rank 1 of 1, as under full ranking.

        Parameters
        ----------
        user_ids : int[B]
            Dense user ids; the key of each user's randomness.
        exclude : (int64[B+1], int32[nnz])
            Offsets and items that each user never gets.
        size
            Negatives wanted per user.
        seed
            Another seed, other negatives.

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
            size,
            seed,
            self.purpose,
            self.groups,
            workspace(self.groups),
        )


@compiled_once()
@njit(cache=True, nogil=True)
def _draw(
    user_ids: np.ndarray,
    exclude_offsets: np.ndarray,
    exclude: np.ndarray,
    size: int,
    seed: int,
    purpose: int,
    groups: Groups,
    space: Workspace,
) -> tuple[np.ndarray, np.ndarray]:
    num_users = user_ids.size
    offsets = np.zeros(num_users + 1, np.int64)
    drawn = np.empty(num_users * size, np.int32)
    tries, end = num_tries(size), 0
    item = 0  # as every other one of the only group
    for row in range(num_users):
        mark = np.int32(row + 1)
        for p in range(exclude_offsets[row], exclude_offsets[row + 1]):
            if 0 <= exclude[p] < space.marks.size:
                space.marks[exclude[p]] = mark
        stream = hash_stream(seed, purpose, user_ids[row])
        stop = end + size
        end = draw_by_tries(stream, tries, mark, item, groups, space, drawn, end, stop)
        if end < stop:
            end = draw_exactly(stream, tries, mark, item, groups, space, drawn, end, end, stop)
        offsets[row + 1] = end
    return offsets, drawn[:end]
