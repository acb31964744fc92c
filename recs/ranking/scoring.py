"""The one form that every model scores through.

On the driver a model is a :class:`Recommender`: a small, picklable, hashable handle that names
files on shared storage. On a worker it opens, once a task, into a :class:`Scorer`, which takes the
histories of a block of users and returns their scores in one of three forms.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from recs.arrays.lists import Lists

#: Numbers of scores held at once by a worker; with their items, at most 64 MB.
BLOCK_SCORES = 8_000_000


class SparseScores(NamedTuple):
    """Scores of the listed items; every other item scores 0.

    ``offsets`` int64[B+1], ``items`` int32[nnz] (distinct within a user, in any order), ``values``
    float32[nnz]. A user without any non-zero score is one to whom the model gives nothing.
    """

    offsets: np.ndarray
    items: np.ndarray
    values: np.ndarray


class DenseScores(NamedTuple):
    """``values`` float32[B, n]: a score for each user and each of the n items that the model knows.

    A score of -inf means that the item is never recommended; so do ids from n on.
    """

    values: np.ndarray


class SharedScores(NamedTuple):
    """``values`` float32[n]: one score an item, the same for all users; else as DenseScores."""

    values: np.ndarray


Scores = SparseScores | DenseScores | SharedScores


class Reasons(NamedTuple):
    """Why items were recommended: per recommendation the history items that weighed most.

    ``items`` int32[n, c], -1 where there are fewer, and ``shares`` float32[n, c], each the share
    of the recommendation's score that came from that history item, largest first.
    """

    items: np.ndarray
    shares: np.ndarray


class Scorer(Protocol):
    """A model on a worker."""

    @property
    def num_items(self) -> int:
        """Items that the model knows; ids from there on are unknown to it."""

    def sizes(self, histories: Lists) -> np.ndarray:
        """Return int64[B], an upper bound of the numbers that ``scores`` will hold per user."""

    def scores(self, histories: Lists) -> Scores:
        """Return the scores of a block of users, given what each has interacted with."""

    def reasons(self, histories: Lists, recommended: Lists, count: int) -> Reasons:
        """Return up to ``count`` reasons for each entry of ``recommended``."""


class Recommender(Protocol):
    """A model on the driver: picklable, hashable, and equal to another of the same files."""

    @property
    def name(self) -> str: ...

    def open(self) -> Scorer:
        """Open the model on a worker; called once a task, so keep in the process what is dear."""


def no_reasons(num_rows: int, count: int) -> Reasons:
    """Return the reasons of a model that has none to give."""
    return Reasons(
        np.full((num_rows, count), -1, np.int32), np.zeros((num_rows, count), np.float32)
    )
