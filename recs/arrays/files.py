"""NumPy arrays, as files on storage that every host reaches.

A Spark task writes them, so the driver holds none. A file's name carries the digest of its
contents: a file never changes, so that workers may keep it open from one job to the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from recs.arrays.matrix import map_cached
from recs.errors import UserError
from recs.storage import filesystem, join, writing

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def write_vectors(
    frame: DataFrame, folder: str, num_items: int, columns: Mapping[str, str]
) -> dict[str, str]:
    """Write columns of a DataFrame with one row an item as vectors of length ``num_items``.

    Parameters
    ----------
    frame
        item_id int and the named columns; items without a row get zero.
    folder
        URI on storage that all hosts reach.
    columns
        Column name to NumPy type name.

    Returns
    -------
    dict
        Column name to the URI of its ``.npy`` file.

    Raises
    ------
    UserError
        If the frame is empty.
    ValueError
        In the task, if an item_id is out of range or repeated, or a value is null.
    """
    columns = dict(columns)

    def vectors(table: pa.Table) -> dict[str, np.ndarray]:
        item_ids = table.column("item_id").to_numpy()
        for name in columns:
            if table.column(name).null_count:
                raise ValueError(f"column {name} holds nulls; give every item a value")
        return {
            name: item_vector(item_ids, table.column(name).to_numpy(), num_items, dtype)
            for name, dtype in columns.items()
        }

    paths = write_arrays(frame.select("item_id", *columns), folder, vectors)
    if not paths:
        raise UserError(f"no items to write columns {', '.join(columns)} of; the table is empty")
    return paths


def write_arrays(
    rows: DataFrame, folder: str, make: Callable[[pa.Table], Mapping[str, np.ndarray]]
) -> dict[str, str]:
    """Write the arrays that ``make`` makes of all ``rows``, in one Spark task, not on the driver.

    Returns
    -------
    dict
        Name of each array to the URI of its ``.npy`` file under ``folder``; empty without rows.
    """

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        received = [batch for batch in batches if batch.num_rows]
        if not received:
            return
        arrays = make(pa.Table.from_batches(received))
        paths = [save_array(array, folder, name) for name, array in arrays.items()]
        yield pa.RecordBatch.from_pydict({"name": list(arrays), "path": paths})

    # A repartition, not a coalesce: what makes the rows stays parallel.
    written = rows.repartition(1).mapInArrow(write, "name string, path string").collect()
    return {row["name"]: row["path"] for row in written}


def item_vector(item_ids: np.ndarray, values: np.ndarray, num_items: int, dtype: str) -> np.ndarray:
    """Return ``values`` placed at their items, zero elsewhere.

    >>> item_vector(np.array([2, 0]), np.array([5, 7]), 4, "int64").tolist()
    [7, 0, 5, 0]
    """
    if item_ids.size and not 0 <= item_ids.min() <= item_ids.max() < num_items:
        raise ValueError(
            f"item_id runs from {item_ids.min()} to {item_ids.max()}, outside 0 to {num_items - 1};"
            " give num_items of the vocabulary that the ids come from"
        )
    if np.unique(item_ids).size != item_ids.size:
        raise ValueError("an item_id has more than one row; give one row an item")
    vector = np.zeros(num_items, dtype)
    vector[item_ids] = values
    return vector


def save_array(array: np.ndarray, folder: str, name: str) -> str:
    """Write ``array`` as a ``.npy`` file named by its contents, whole or not at all."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    uri = join(folder, f"{name}-{digest.hexdigest()[:16]}.npy")
    with writing(uri) as file:
        np.save(file, array)
    return uri


@lru_cache(maxsize=64)
def load_array(uri: str) -> np.ndarray:
    """Map the array at ``uri`` into memory: a local file, or else its copy in the host's cache.

    ``uri`` is one that :func:`save_array` returned: it names what is there.
    """
    fs, path = filesystem(uri)
    if "file" in fs.protocol:
        return np.asarray(np.load(path, mmap_mode="r"))

    def build(target: Path) -> None:
        fs.get_file(path, str(target / "array.npy"))

    return np.asarray(map_cached(uri, "", build)["array"])
