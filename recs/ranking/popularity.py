"""Popularity as a model: every user gets the same scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recs.arrays.files import load_array, write_vectors
from recs.arrays.lists import Lists
from recs.ranking.scoring import Reasons, SharedScores, no_reasons

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
class PopularityScorer:
    """See :class:`PopularityModel`; ``item_scores`` float32[N]."""

    item_scores: np.ndarray

    @property
    def num_items(self) -> int:
        return self.item_scores.size

    def sizes(self, histories: Lists) -> np.ndarray:
        return np.zeros(histories.num_rows, np.int64)

    def scores(self, histories: Lists) -> SharedScores:
        return SharedScores(self.item_scores)

    def reasons(self, histories: Lists, recommended: Lists, count: int) -> Reasons:
        return no_reasons(recommended.items.size, count)


def write_popularity(
    popularity: DataFrame, folder: str, num_items: int, name: str = "popularity"
) -> PopularityModel:
    """Write ``popularity`` (item_id, score; other items score 0) under ``folder``."""
    return PopularityModel(
        name, write_vectors(popularity, folder, num_items, {"score": "float32"})["score"]
    )
