"""The items that may be recommended, and items' names, as arrays that every host maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from recs.arrays.files import load_array, write_arrays, write_vectors
from recs.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class ItemCatalogue:
    """The items that may be recommended and how often each was wanted in training.

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


@dataclass(frozen=True)
class ItemNames:
    """The names of all items, end to end.

    Attributes
    ----------
    offsets_path, bytes_path
        URIs of an int64[N+1] and a uint8 ``.npy`` file: the name of item i is the UTF-8 of
        ``bytes[offsets[i]:offsets[i + 1]]``.
    """

    offsets_path: str
    bytes_path: str

    def of(self, items: np.ndarray) -> pa.Array:
        """Return the names of ``items``, as Arrow strings."""
        offsets = load_array(self.offsets_path)
        buffers = (pa.py_buffer(array) for array in (offsets, load_array(self.bytes_path)))
        names = pa.LargeStringArray.from_buffers(offsets.size - 1, *buffers)
        return names.take(pa.array(items)).cast(pa.string())


def write_names(item_ids: DataFrame, folder: str, num_items: int) -> ItemNames:
    """Write ``item_ids`` (item_id, item), a row for each of ``num_items``, under ``folder``.

    Raises
    ------
    ValueError
        In the task, if an item has no row or several.
    """

    def arrays(table: pa.Table) -> dict[str, np.ndarray]:
        ids = table.column("item_id").to_numpy()
        order = np.argsort(ids)
        if not np.array_equal(ids[order], np.arange(num_items)):
            raise ValueError(f"item_ids do not number items from 0 to {num_items - 1}, each once")
        # Together they may take more than the 2 GB that 32-bit offsets reach.
        names = table.column("item").cast(pa.large_string()).combine_chunks().take(order)
        _, offsets, text = names.buffers()
        return {
            "name-offsets": np.frombuffer(offsets, np.int64)[: num_items + 1],
            "names": np.frombuffer(text, np.uint8),
        }

    paths = write_arrays(item_ids.select("item_id", "item"), folder, arrays)
    if not paths:
        raise UserError("there are no items to name: run the stage vocabulary first")
    return ItemNames(paths["name-offsets"], paths["names"])
