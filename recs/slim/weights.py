"""Solutions as rows of a DataFrame, and weights from files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from recs.arrays.matrix import CsrFiles
from recs.slim import solver

if TYPE_CHECKING:
    import pyarrow as pa

    Task = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]

FITS_SCHEMA = (
    "item_id int, neighbours array<int>, weights array<float>, iterations int, nonzeros int, "
    "kkt_residual double, objective double, converged boolean"
)


def fits_batch(
    ids: np.ndarray, items: np.ndarray, solution: solver.Solution, options: solver.Options
) -> pa.RecordBatch:
    """Return a solution of ``items`` as rows; these and its neighbours are places in ``ids``."""
    import pyarrow as pa

    neighbours = ids[solution.neighbours]
    lengths = np.diff(solution.offsets)
    order = np.lexsort((neighbours, np.repeat(np.arange(len(items)), lengths)))
    offsets = pa.array(solution.offsets.astype(np.int32))
    unsolved = max(options.tolerance, options.warm_tolerance or 0.0)
    limits = np.where(solution.iterations == 0, unsolved, options.tolerance)
    columns = {
        "item_id": pa.array(ids[items]),
        "neighbours": pa.ListArray.from_arrays(offsets, pa.array(neighbours[order])),
        "weights": pa.ListArray.from_arrays(offsets, pa.array(solution.weights[order])),
        "iterations": pa.array(solution.iterations),
        "nonzeros": pa.array(lengths.astype(np.int32)),
        "kkt_residual": pa.array(solution.kkt_residual),
        "objective": pa.array(solution.objective),
        "converged": pa.array(solution.kkt_residual <= limits),
    }
    return pa.RecordBatch.from_pydict(columns)


def start_weights(files: CsrFiles, items: np.ndarray) -> solver.Weights:
    """Return the rows ``items`` of a matrix of weights."""
    matrix = files.open()
    lengths = matrix.indptr[items + 1] - matrix.indptr[items]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    places = np.arange(offsets[-1]) + np.repeat(matrix.indptr[items] - offsets[:-1], lengths)
    ones = np.ones(len(places), np.float32)
    weights = ones if matrix.data is None else matrix.data[places]
    return solver.Weights(offsets, matrix.indices[places], weights)
