"""Lists of users in a block as flat NumPy arrays, from and to Arrow without copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from recs.errors import UserError


class Lists(NamedTuple):
    """The lists of B users end to end.

    Attributes
    ----------
    offsets : int64[B+1]
        User b's entries are ``offsets[b]:offsets[b + 1]``.
    items : int32[nnz]
    values : float32[nnz] or None
        A value per entry; None means 1.0 each.
    vectors : float32[B, d] or None
        A vector per user, of users whose list is a history that a network has read.
    """

    offsets: np.ndarray
    items: np.ndarray
    values: np.ndarray | None = None
    vectors: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    def rows(self, start: int, stop: int) -> Lists:
        """Return the lists of users ``start`` to ``stop`` (exclusive)."""
        first, last = self.offsets[start], self.offsets[stop]
        values = None if self.values is None else self.values[first:last]
        vectors = None if self.vectors is None else self.vectors[start:stop]
        offsets = self.offsets[start : stop + 1] - first
        return Lists(offsets, self.items[first:last], values, vectors)

    def select(self, chosen: np.ndarray) -> Lists:
        """Return the lists of the users marked in ``chosen`` (bool[B])."""
        lengths = np.diff(self.offsets)
        entries = np.repeat(chosen, lengths)
        values = None if self.values is None else self.values[entries]
        vectors = None if self.vectors is None else self.vectors[chosen]
        return Lists(offsets_of(lengths[chosen]), self.items[entries], values, vectors)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return the int64[B+1] offsets of lists with these lengths.

    >>> offsets_of(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def read_column(batch: pa.RecordBatch, name: str, dtype: type = np.int32) -> np.ndarray:
    """Return a flat column as NumPy; a missing value is an error that names the column."""
    return _numbers(batch.column(name), name, dtype)


def read_lists(batch: pa.RecordBatch, items: str, values: str | None = None) -> Lists:
    """Return array columns of a batch as :class:`Lists`; a null array reads as an empty one.

    Raises
    ------
    ValueError
        If an array holds a null, or the two columns' lengths differ in some row.
    """
    offsets, flat = _flatten(batch.column(items), items, np.int32)
    if values is None:
        return Lists(offsets, flat)
    value_offsets, numbers = _flatten(batch.column(values), values, np.float32)
    if not np.array_equal(offsets, value_offsets):
        raise ValueError(f"columns {items} and {values} have arrays of different lengths in a row")
    return Lists(offsets, flat, numbers)


def read_vectors(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Return an array column whose arrays are of one length as float32[rows, d]; null is zeros.

    Raises
    ------
    UserError
        If the arrays differ in length.
    ValueError
        If an array holds a null.
    """
    offsets, flat = _flatten(batch.column(name), name, np.float32)
    lengths = np.diff(offsets)
    widths = np.unique(lengths[lengths > 0])
    if len(widths) > 1:
        raise UserError(f"column {name} has vectors of {widths.tolist()} numbers: embed again")
    vectors = np.zeros((batch.num_rows, widths.max(initial=0)), np.float32)
    vectors[lengths > 0] = flat.reshape(-1, vectors.shape[1] or 1)[: (lengths > 0).sum()]
    return vectors


def to_arrow(offsets: np.ndarray, values: pa.Array) -> pa.ListArray:
    """Return lists as an Arrow array; ``values`` are the flat entries."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def right_aligned(lists: Lists, width: int, fill: int) -> np.ndarray:
    """Return int32[B, width]: the last entries of each list, with ``fill`` before them.

    >>> right_aligned(Lists(np.array([0, 1, 4]), np.array([7, 1, 2, 3])), 2, -1).tolist()
    [[-1, 7], [2, 3]]
    """
    lengths = np.diff(lists.offsets)
    dropped = np.maximum(lengths - width, 0)
    places = np.arange(len(lists.items)) - np.repeat(lists.offsets[:-1], lengths)
    rows = np.full((lists.num_rows, width), fill, np.int32)
    filled = np.arange(width) >= (width - lengths)[:, None]
    rows[filled] = lists.items[places >= np.repeat(dropped, lengths)]
    return rows


def blocks(sizes: np.ndarray, budget: int) -> Iterator[tuple[int, int]]:
    """Cut users into runs whose sizes sum to at most ``budget``; a run has at least one user.

    >>> list(blocks(np.array([3, 3, 3, 9]), budget=6))
    [(0, 2), (2, 3), (3, 4)]
    """
    ends = np.cumsum(sizes)
    start, used = 0, 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(ends, used + budget, side="right")))
        yield start, stop
        start, used = stop, int(ends[stop - 1])


def _flatten(column: pa.Array, name: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    # Lengths and flatten() heed slices and null rows; the raw offsets and values do not.
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return offsets_of(lengths), _numbers(column.flatten(), name, dtype)


def _numbers(array: pa.Array, name: str, dtype: type) -> np.ndarray:
    if array.null_count:
        raise ValueError(f"column {name} holds {array.null_count} nulls; leave them out")
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False), dtype)
