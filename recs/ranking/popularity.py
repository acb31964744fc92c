"""Popularity as a model: every user gets the same scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from recs.arrays.files import load_array, write_vectors
from recs.arrays.lists import Lists
from recs.ranking.scoring import Scorer, SharedScores

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class PopularityModel:
    """Scores items by how often they were interacted with, ever or in recent days.

    Attributes
    ----------
    name
        Name of the model in every table.
    path
        URI of a float32[N] ``.npy`` file, as :func:`write_popularity` writes it.
    """

    name: str
    path: str

    def open(self) -> PopularityScorer:
        return PopularityScorer(load_array(self.path))


@dataclass(frozen=True, eq=False)
class PopularityScorer(Scorer):
    """See :class:`PopularityModel`; ``item_scores`` float32[N]."""

    item_scores: np.ndarray

    @property
    def num_items(self) -> int:
        return self.item_scores.size

    def sizes(self, histories: Lists) -> np.ndarray:
        return np.zeros(histories.num_rows, np.int64)

    def gives_nothing(self, histories: Lists) -> np.ndarray:
        return np.zeros(histories.num_rows, bool)

    def scores(self, histories: Lists) -> SharedScores:
        return self._scores

    @cached_property
    def _scores(self) -> SharedScores:
        return SharedScores(self.item_scores)  # one for all blocks: it sorts all scores once


def write_popularity(
    popularity: DataFrame, folder: str, num_items: int, name: str = "popularity"
) -> PopularityModel:
    """Write ``popularity`` (item_id, score; other items score 0) under ``folder``."""
    return PopularityModel(
        name, write_vectors(popularity, folder, num_items, {"score": "float32"})["score"]
    )
