"""The items that may be recommended, as arrays that every host maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from recs.arrays.files import load_array, write_vectors

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class ItemCatalogue:
    """The items that may be recommended and how often each was seen in training.

    Attributes
    ----------
    recommendable_path, train_events_path
        URIs of a bool[N] and an int64[N] ``.npy`` file.
    """

    recommendable_path: str
    train_events_path: str

    @property
    def recommendable(self) -> np.ndarray:
        return load_array(self.recommendable_path)

    @property
    def train_events(self) -> np.ndarray:
        return load_array(self.train_events_path)

    @property
    def head(self) -> np.ndarray:
        """bool[N]: the most popular fifth of the recommendable items; of equals, lower ids."""
        return _head(self)


@lru_cache(maxsize=8)
def _head(catalogue: ItemCatalogue) -> np.ndarray:
    items = np.flatnonzero(catalogue.recommendable)
    order = np.argsort(-catalogue.train_events[items], kind="stable")
    head = np.zeros(catalogue.recommendable.size, bool)
    head[items[order[: round(0.2 * items.size)]]] = True
    return head


def write_catalogue(catalogue: DataFrame, folder: str, num_items: int) -> ItemCatalogue:
    """Write ``catalogue`` (item_id, train_events, recommendable) as vectors under ``folder``.

    Items that have no row are not recommendable and have no events.
    """
    paths = write_vectors(
        catalogue, folder, num_items, {"recommendable": "bool", "train_events": "int64"}
    )
    return ItemCatalogue(paths["recommendable"], paths["train_events"])
