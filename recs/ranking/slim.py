"""SLIM as a model: sparse histories times sparse weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.arrays.lists import Lists
from recs.ranking.scoring import Reasons, Scorer, SparseScores


class Weights(Protocol):
    """An opened sparse matrix in CSR form: ``indptr``, ``indices``, ``data`` and ``shape``."""

    @property
    def indptr(self) -> np.ndarray: ...
    @property
    def indices(self) -> np.ndarray: ...
    @property
    def data(self) -> np.ndarray | None: ...
    @property
    def shape(self) -> tuple[int, int]: ...


class WeightFiles(Protocol):
    """A picklable, hashable handle of a sparse matrix on shared storage."""

    def open(self) -> Weights: ...


@dataclass(frozen=True)
class SlimModel:
    """SLIM (Ning and Karypis 2011): score(u, i) = Σ_j a_uj w_ij over the user's history.

    Attributes
    ----------
    name
        Name of the model in every table.
    weights
        Files of W by neighbour: row j holds the items i that a history with j gives w_ij.
    """

    name: str
    weights: WeightFiles

    def open(self) -> SlimScorer:
        weights = self.weights.open()
        if weights.shape[0] != weights.shape[1]:
            raise ValueError(f"weights of model {self.name} are {weights.shape}, not N by N")
        data = weights.data  # None where every weight is 1, or there is none
        data = np.ones(weights.indices.size, np.float32) if data is None else data
        return SlimScorer(*map(np.asarray, (weights.indptr, weights.indices, data)))


@dataclass(frozen=True, eq=False)
class SlimScorer(Scorer):
    """See :class:`SlimModel`. The work is in proportion to the weights of the histories' items.

    History items that the weights do not know are passed over.
    """

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    @property
    def num_items(self) -> int:
        return self.indptr.size - 1

    def sizes(self, histories: Lists) -> np.ndarray:
        known = histories.items < self.num_items
        items = np.where(known, histories.items, 0)
        lengths = np.where(known, self.indptr[items + 1] - self.indptr[items], 0)
        ends = np.zeros(items.size + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        sizes = ends[histories.offsets[1:]] - ends[histories.offsets[:-1]]
        return np.minimum(sizes, self.num_items)

    def scores(self, histories: Lists) -> SparseScores:
        room = int(self.sizes(histories).sum())
        values = _weights_of(histories)
        return SparseScores(
            *_score(
                histories.offsets,
                histories.items,
                values,
                self.indptr,
                self.indices,
                self.data,
                room,
            )
        )

    def gives_nothing(self, histories: Lists) -> np.ndarray:
        return self.sizes(histories) == 0

    def reasons(self, histories: Lists, recommended: Lists, count: int) -> Reasons:
        return Reasons(
            *_explain(
                histories.offsets,
                histories.items,
                _weights_of(histories),
                recommended.offsets,
                recommended.items,
                self.indptr,
                self.indices,
                self.data,
                count,
            )
        )


def _weights_of(histories: Lists) -> np.ndarray:
    if histories.values is None:
        return np.ones(histories.items.size, np.float32)
    return histories.values


@compiled_once()
@njit(cache=True, nogil=True)
def _score(
    offsets: np.ndarray,
    history: np.ndarray,
    values: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    room: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    num_users, num_items = offsets.size - 1, indptr.size - 1
    out_offsets = np.zeros(num_users + 1, np.int64)
    out_items = np.empty(room, np.int32)
    out_values = np.empty(room, np.float32)
    sums = np.zeros(num_items)
    touched_by = np.full(num_items, -1, np.int32)
    end = 0
    for u in range(num_users):
        for p in range(offsets[u], offsets[u + 1]):
            j = history[p]
            if j >= num_items:
                continue
            for q in range(indptr[j], indptr[j + 1]):
                item = indices[q]
                if touched_by[item] != u:
                    touched_by[item] = u
                    sums[item] = 0.0
                    out_items[end] = item
                    end += 1
                sums[item] += values[p] * data[q]
        for p in range(out_offsets[u], end):
            out_values[p] = sums[out_items[p]]
        out_offsets[u + 1] = end
    return out_offsets, out_items[:end], out_values[:end]


@compiled_once()
@njit(cache=True, nogil=True)
def _explain(
    offsets: np.ndarray,
    history: np.ndarray,
    values: np.ndarray,
    recommended_offsets: np.ndarray,
    recommended: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Walk the histories' weights once more and keep the largest terms of recommended items."""
    num_users, num_items = offsets.size - 1, indptr.size - 1
    reasons = np.full((recommended.size, count), -1, np.int32)
    terms = np.zeros((recommended.size, count), np.float32)
    totals = np.zeros(recommended.size)
    place_of = np.full(num_items, -1, np.int64)
    for u in range(num_users):
        start, stop = recommended_offsets[u], recommended_offsets[u + 1]
        for r in range(start, stop):
            place_of[recommended[r]] = r
        for p in range(offsets[u], offsets[u + 1]):
            j = history[p]
            if j >= num_items:
                continue
            for q in range(indptr[j], indptr[j + 1]):
                r = place_of[indices[q]]
                if r < 0:
                    continue
                term = np.float32(values[p] * data[q])
                totals[r] += term
                slot = count
                while slot > 0 and term > terms[r, slot - 1]:
                    slot -= 1
                    if slot + 1 < count:
                        terms[r, slot + 1] = terms[r, slot]
                        reasons[r, slot + 1] = reasons[r, slot]
                if slot < count:
                    terms[r, slot], reasons[r, slot] = term, j
        for r in range(start, stop):
            place_of[recommended[r]] = -1
            for slot in range(count):
                if reasons[r, slot] >= 0:
                    terms[r, slot] /= totals[r]
    return reasons, terms
