"""Means over users with 95% bootstrap intervals, the same to the last bit under any partitioning.

Poisson bootstrap: replicate r gives user u a weight drawn from Poisson(1), and the replicate's
value is the weighted mean over users; the interval runs from the 2.5% to the 97.5% quantile of the
replicates. The weight is a hash of (seed, user, r), so that all models, protocols and slices share
their replicates: differences between models are paired. Per-user values are rounded to multiples of
2^-30 and summed as integers, whose sum has no order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, factorial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numba import njit

from recs.sampling import hash_uniform

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: Value of one unit of the integer sums.
UNIT = 2.0**-30
#: Users multiplied at once. Values below 2^9 and weights that sum to some 2^12 keep the sums below
#: 2^53, where float64 is exact.
_BLOCK = 4096

_POISSON = np.cumsum([exp(-1) / factorial(n) for n in range(17)])

_SUMS = "model string, protocol string, split string, slice string, sums binary"
_KEY = ("model", "protocol", "split", "slice")

Key = tuple[str, str, str, str]


@njit(cache=True, nogil=True)
def _weights(user_ids: np.ndarray, replicates: int, seed: int, cumulative: np.ndarray) -> np.ndarray:
    weights = np.ones((user_ids.size, replicates + 1))
    for u in range(user_ids.size):
        for r in range(replicates):
            point = hash_uniform(seed, user_ids[u], r)
            weight = 0
            while weight < cumulative.size and point >= cumulative[weight]:
                weight += 1
            weights[u, r + 1] = weight
    return weights


def poisson_weights(user_ids: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Return float64[B, replicates + 1]: ones, then each replicate's weights of the users."""
    return _weights(np.asarray(user_ids, np.int64), replicates, seed, _POISSON)


class Totals:
    """Weighted sums of per-user values, int64[columns, replicates + 1] a key.

    Column 0 of a key counts its users; values are in multiples of :data:`UNIT`.
    """

    def __init__(self, replicates: int, seed: int) -> None:
        self.replicates, self.seed = replicates, seed
        self.sums: dict[Key, np.ndarray] = {}

    def add(
        self, user_ids: np.ndarray, groups: Sequence[tuple[Key, np.ndarray, np.ndarray]]
    ) -> None:
        """Add a block of users.

        Parameters
        ----------
        user_ids : int[B]
        groups
            Each a key, the users that belong to it (bool[B]), and the values float64[B, C].
        """
        for start in range(0, user_ids.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            weights = poisson_weights(user_ids[block], self.replicates, self.seed)
            for key, members, values in groups:
                chosen = members[block]
                if not chosen.any():
                    continue
                units = np.rint(values[block][chosen] / UNIT)
                units = np.column_stack([np.ones(len(units)), units])
                sums = (units.T @ weights[chosen]).astype(np.int64)
                self.sums[key] = self.sums[key] + sums if key in self.sums else sums

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Yield the sums as rows of a DataFrame."""
        for key, sums in self.sums.items():
            columns = {name: [part] for name, part in zip(_KEY, key, strict=True)}
            yield pa.RecordBatch.from_pydict({**columns, "sums": [sums.tobytes()]})


def total(partial: DataFrame, replicates: int) -> dict[Key, np.ndarray]:
    """Add up the rows that tasks yielded from :meth:`Totals.rows`, on the workers.

    What reaches the driver is one row a key: columns × replicates, whatever the number of users.
    """

    def add(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = Totals(replicates, 0)
        for batch in batches:
            for *parts, packed in zip(*(batch.column(n).to_pylist() for n in range(5)), strict=True):
                key, sums = tuple(parts), np.frombuffer(packed, np.int64)
                totals.sums[key] = totals.sums[key] + sums if key in totals.sums else sums
        yield from totals.rows()

    rows = partial.repartition(*_KEY).mapInArrow(add, _SUMS).collect()
    return {
        (row.model, row.protocol, row.split, row.slice): np.frombuffer(row.sums, np.int64).reshape(
            -1, replicates + 1
        )
        for row in rows
    }


@dataclass(frozen=True)
class Estimate:
    """A mean over ``users`` with its 95% interval."""

    value: float
    lower: float
    upper: float
    users: int


def replicate_means(sums: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Return float64[replicates + 1]: a column's mean over users, then that of each replicate.

    Parameters
    ----------
    sums, users : int64[replicates + 1]
        Weighted sums of the values, in units, and of the users.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(users > 0, sums / users, np.nan) * UNIT


def estimate(means: np.ndarray, users: int) -> Estimate:
    """Return the first of ``means`` with the interval of the rest, as :func:`replicate_means` gives.

    A replicate that drew no user at all (of a handful) says nothing and is left out.
    """
    lower, upper = np.nanquantile(means[1:], [0.025, 0.975])
    return Estimate(float(means[0]), float(lower), float(upper), users)
