"""Both ways to the Gram matrix against NumPy's product."""

from __future__ import annotations

import numpy as np
import pytest

from recs.arrays.matrix import Csr
from recs.slim import gram


def csr(a: np.ndarray) -> Csr:
    rows, columns = np.nonzero(a)
    data = a[rows, columns].astype(np.float32)
    indptr = np.concatenate(([0], np.cumsum((a != 0).sum(axis=1))))
    values = None if (data == 1).all() else data
    return Csr(indptr, columns.astype(np.int32), values, (a.shape[0], a.shape[1]))


@pytest.fixture(params=[False, True], ids=["binary", "weighted"])
def a(request: pytest.FixtureRequest) -> np.ndarray:
    rng = np.random.default_rng(0)
    ones = (rng.random((700, 40)) < 0.2).astype(np.float32)
    return ones * rng.integers(1, 6, ones.shape) if request.param else ones


def test_rows(a: np.ndarray) -> None:
    by_item, by_user = csr(a.T), csr(a)
    expected = a.T @ a
    ways = [by_user, None] if by_item.data is None else [by_user]
    for way in ways:
        np.testing.assert_array_equal(gram.gram_rows(by_item, way, 3, 33), expected[3:33])


def test_counts_take_16_bits_where_they_fit() -> None:
    assert gram.gram_dtype(65_535, True) == np.uint16
    assert gram.gram_dtype(65_536, True) == np.float32
    assert gram.gram_dtype(10, False) == np.float32


def test_blocks_cover_all_rows(a: np.ndarray) -> None:
    for blocks in (1, 3, 40, 100):
        bounds = gram.row_blocks(csr(a.T), blocks)
        assert bounds[0] == 0 and bounds[-1] == 40 and (np.diff(bounds) >= 0).all()


def test_bits_for_dense_data_scatter_for_sparse() -> None:
    assert gram.prefer_bits(6_040, 3_416, 987_531, True)
    assert not gram.prefer_bits(6_040, 3_416, 987_531, False)
    assert not gram.prefer_bits(31_013, 23_715, 225_081, True)
