"""Means over users with 95% bootstrap intervals, the same to the last bit under any partitioning.

Poisson bootstrap: replicate r gives user u a weight drawn from Poisson(1), and the replicate's
value is the weighted mean over users; the interval runs from the 2.5% to the 97.5% quantile of the
replicates. The weight is a hash of (seed, user, r), so that all models, protocols and slices share
their replicates: differences between models are paired. Per-user values are rounded to multiples of
2^-30 and summed as integers, whose sum has no order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import exp, factorial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.sampling.hashing import BOOTSTRAP, hash_bits, hash_stream

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: Value of one unit of the integer sums.
UNIT = 2.0**-30
#: Users multiplied at once. Values below 2^9 and weights that sum to some 2^10 keep the sums below
#: 2^53, where float64 is exact.
_BLOCK = 1024

#: Poisson(1) by inversion of 16 random bits.
_POISSON = np.searchsorted(
    np.cumsum([exp(-1) / factorial(n) for n in range(17)]), np.arange(2**16) / 2**16, side="right"
).astype(np.uint8)

SUMS = "group int, cell int, sums binary"

#: Sums by group and cell.
Sums = dict[tuple[int, int], np.ndarray]


@compiled_once()
@njit(cache=True, nogil=True)
def _weights(user_ids: np.ndarray, replicates: int, seed: int, table: np.ndarray) -> np.ndarray:
    weights = np.ones((user_ids.size, replicates + 1))
    for u in range(user_ids.size):
        stream = hash_stream(seed, BOOTSTRAP, user_ids[u])
        for r in range(0, replicates, 4):  # four weights of 16 bits a hash
            bits = hash_bits(stream, r)
            for n in range(r, min(r + 4, replicates)):
                weights[u, n + 1] = table[bits & np.uint64(0xFFFF)]
                bits >>= np.uint64(16)
    return weights


def poisson_weights(user_ids: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Return float64[B, replicates + 1]: ones, then each replicate's weights of the users."""
    return _weights(np.asarray(user_ids, np.int64), replicates, seed, _POISSON)


class Totals:
    """Weighted sums of per-user values, in multiples of :data:`UNIT`.

    Users are summed by their group (a model, protocol and split) and their cell (a disjoint slice
    of the users): int64[columns, replicates + 1] each.
    """

    def __init__(self, replicates: int, seed: int) -> None:
        self.replicates, self.seed = replicates, seed
        self.sums: Sums = {}

    def add(
        self, user_ids: np.ndarray, groups: np.ndarray, cells: np.ndarray, values: np.ndarray
    ) -> None:
        """Add a block of B users.

        Parameters
        ----------
        user_ids, groups, cells : int[B]
        values : float64[B, C]
        """
        # Sorted, the users of a group and cell are one slice of the weights, which is no copy.
        order = np.lexsort((cells, groups))
        user_ids, groups, cells = user_ids[order], groups[order], cells[order]
        units = np.rint(values[order] / UNIT)
        for first in range(0, user_ids.size, _BLOCK):
            last = min(first + _BLOCK, user_ids.size)
            weights = poisson_weights(user_ids[first:last], self.replicates, self.seed)
            place = groups[first:last], cells[first:last]
            changes = np.flatnonzero((np.diff(place[0]) != 0) | (np.diff(place[1]) != 0)) + 1
            for start, stop in pairwise([0, *changes, last - first]):
                sums = units[first + start : first + stop].T @ weights[start:stop]
                self.put((int(place[0][start]), int(place[1][start])), sums.astype(np.int64))

    def put(self, key: tuple[int, int], sums: np.ndarray) -> None:
        """Add sums that were made elsewhere."""
        self.sums[key] = self.sums[key] + sums if key in self.sums else sums

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Yield the sums as rows of a DataFrame, :data:`SUMS`."""
        for (group, cell), sums in self.sums.items():
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array([group], pa.int32()),
                    pa.array([cell], pa.int32()),
                    pa.array([sums.tobytes()]),
                ],
                ["group", "cell", "sums"],
            )


def total(partial: DataFrame, replicates: int) -> Sums:
    """Add up the rows that tasks yielded from :meth:`Totals.rows`, on the workers.

    What reaches the driver is one row a group and cell: columns × replicates, whatever the number
    of users.
    """

    def add(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = Totals(replicates, seed=0)
        for batch in batches:
            columns = (batch.column(name).to_pylist() for name in ("group", "cell", "sums"))
            for group, cell, packed in zip(*columns, strict=True):
                totals.put((group, cell), np.frombuffer(packed, np.int64))
        yield from totals.rows()

    rows = partial.repartition("group", "cell").mapInArrow(add, SUMS).collect()
    return {
        (row.group, row.cell): np.frombuffer(row.sums, np.int64).reshape(-1, replicates + 1)
        for row in rows
    }


class Estimate(NamedTuple):
    """A mean over ``users`` with its 95% interval."""

    value: float
    lower: float
    upper: float
    users: int


def replicate_means(sums: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Return float64[replicates + 1]: a column's mean over users, then that of each replicate.

    Parameters
    ----------
    sums, users : int64[..., replicates + 1]
        Weighted sums of the values, and of 1 for each user that counts.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(users > 0, sums / users, np.nan)


def estimate(means: np.ndarray, users: np.ndarray) -> Estimate:
    """Return the first of :func:`replicate_means` with the interval of the rest.

    A replicate that drew no user at all (of a handful) says nothing and is left out.
    """
    lower, upper = np.nanquantile(means[1:], [0.025, 0.975])
    return Estimate(float(means[0]), float(lower), float(upper), round(users[0] * UNIT))
