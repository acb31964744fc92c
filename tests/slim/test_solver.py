"""The solver against plain NumPy, the optimality conditions and values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recs.slim import solver
from recs.slim.gram import Gram, tail_starts
from recs.slim.solver import Options, Solution, Weights

#: Sizes of the table: no tail, no table, some of both, a table of all with A beside it.
HEADS = [None, 0, 1, 12, 30]


def matrix(weighted: bool, seed: int = 7, shape: tuple[int, int] = (80, 30)) -> np.ndarray:
    """Some users × items with popular and rare items, and one item without an event."""
    rng = np.random.default_rng(seed)
    a = (rng.random(shape) < rng.beta(1, 3, shape[1])).astype(np.float64)
    a[:, 5] = 0
    return a * np.round(rng.uniform(0.5, 5, shape) * 2) / 2 if weighted else a


def hybrid(a: np.ndarray, head: int) -> Gram:
    """Return G with a table for the first ``head`` items only."""

    def rows(b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = (b > 0).sum(axis=1)
        r, c = np.nonzero(b)
        binary = bool((b[r, c] == 1).all())
        values = np.empty(0) if binary else b[r, c]
        return np.r_[0, lengths.cumsum()], c.astype(np.int32), values.astype(np.float32)

    indptr, items, values = rows(a)
    table = (a.T @ a)[:head, :head].astype(np.float32)
    return Gram(table, indptr, tail_starts(indptr, items, head), items, values, *rows(a.T))


def solve(a: np.ndarray, l1: float, l2: float, *, head: int | None = None, **more: Any) -> Solution:
    gram = a.T @ a
    source = Gram(gram.astype(np.float32)) if head is None else hybrid(a, head)
    items = np.arange(a.shape[1], dtype=np.int32)
    given = {key: more.pop(key) for key in ("warm_start", "ids") if key in more}
    return solver.solve(source, np.diag(gram), items, Options(l1, l2, **more), **given)


def dense(solution: Solution, num_items: int) -> np.ndarray:
    """Return W with item i's weights in row i."""
    w = np.zeros((num_items, num_items))
    rows = np.repeat(np.arange(num_items), np.diff(solution.offsets))
    w[rows, solution.neighbours] = solution.weights
    return w


def oracle(
    a: np.ndarray, i: int, l1: float, l2: float, allowed: list[int] | None = None
) -> np.ndarray:
    """Coordinate descent over the users themselves, every item in turn, until nothing moves."""
    allowed = list(range(a.shape[1])) if allowed is None else allowed
    w = np.zeros(a.shape[1])
    norms = np.square(a).sum(axis=0)
    residual = a[:, i].copy()
    for _ in range(5000):
        before = w.copy()
        for j in allowed:
            if j == i or norms[j] == 0:
                continue
            new = max(0.0, (a[:, j] @ residual + norms[j] * w[j] - l1) / (norms[j] + l2))
            residual -= (new - w[j]) * a[:, j]
            w[j] = new
        if np.abs(w - before).max() < 1e-12:
            break
    return w


def objective(a: np.ndarray, i: int, w: np.ndarray, l1: float, l2: float) -> float:
    return 0.5 * np.square(a[:, i] - a @ w).sum() + l1 * np.abs(w).sum() + l2 / 2 * w @ w


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("l1", "l2"), [(1.0, 1.0), (0.0, 3.0), (6.0, 0.5)])
def test_against_plain_coordinate_descent(
    head: int | None, weighted: bool, l1: float, l2: float
) -> None:
    a = matrix(weighted)
    found = solve(a, l1, l2, head=head, tolerance=1e-8)
    w = dense(found, a.shape[1])
    for i in range(a.shape[1]):
        expected = oracle(a, i, l1, l2)
        np.testing.assert_allclose(w[i], expected, atol=2e-6)
        assert found.objective[i] == pytest.approx(objective(a, i, expected, l1, l2), rel=1e-6)
    assert found.kkt_residual.max() <= 1e-8


@pytest.mark.parametrize("head", HEADS)
def test_optimality_conditions_where_the_working_set_grows(head: int | None) -> None:
    """More neighbours than a working set starts with, and their conditions checked from A."""
    a = matrix(False, seed=3, shape=(400, 150))
    l1, l2 = 0.05, 20.0
    found = solve(a, l1, l2, head=head, tolerance=1e-6)
    assert np.diff(found.offsets).max() > solver.WORKING_SET
    w = dense(found, a.shape[1])
    r = (a.T @ (a - a @ w.T)).T - l1 - l2 * w  # [i, j]
    scale = (a.T @ a - np.diag(np.square(a).sum(axis=0))).max(axis=1, initial=1)[:, None]
    np.fill_diagonal(r, -1)
    assert (w >= 0).all() and (np.diag(w) == 0).all()
    assert np.abs(r / scale)[w > 0].max() < 5e-6
    assert (r / scale)[w == 0].max() < 5e-6


def test_values_by_hand() -> None:
    """Two items, G = [[3, 2], [2, 4]]: w = (2 − λ) / (G_jj + β), with λ = 1 and β = 1."""
    a = np.array([[1, 1], [1, 1], [1, 0], [0, 1], [0, 1]], np.float64)
    found = solve(a, 1, 1)
    assert found.neighbours.tolist() == [1, 0]
    np.testing.assert_allclose(found.weights, [1 / 5, 1 / 4], rtol=1e-6)
    # ½ G_ii − ½ (G_ij − λ)² / (G_jj + β)
    np.testing.assert_allclose(found.objective, [1.5 - 0.5 / 5, 2 - 0.5 / 4])


def test_screening_is_exact_at_its_threshold() -> None:
    """An item shared λ times cannot enter; one shared by a user more does."""
    a = np.array([[1, 1], [1, 1], [1, 0], [0, 1], [0, 1]], np.float64)
    assert len(solve(a, 2, 0).weights) == 0
    assert len(solve(a, 1.999, 0).weights) == 2


@pytest.mark.parametrize("head", HEADS)
def test_a_warm_start_changes_the_time_only(head: int | None) -> None:
    a = matrix(True)
    cold = solve(a, 1, 1, head=head, tolerance=1e-8)
    again = solve(
        a, 1, 1, head=head, tolerance=1e-8, warm_start=Weights(*cold[:3]), max_iterations=50
    )
    rng = np.random.default_rng(0)
    everything = np.tile(np.arange(a.shape[1], dtype=np.int32), a.shape[1])
    anything = Weights(
        np.arange(a.shape[1] + 1) * a.shape[1],
        everything,
        rng.random(len(everything)).astype(np.float32),
    )
    wild = solve(a, 1, 1, head=head, tolerance=1e-8, warm_start=anything)
    for other in (again, wild):
        np.testing.assert_array_equal(other.neighbours, cold.neighbours)
        np.testing.assert_allclose(other.weights, cold.weights, atol=1e-6)
    assert again.iterations.sum() < cold.iterations.sum() / 2


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "cooccurrence"])
def test_neighbours_are_picked_among_the_most_similar(
    head: int | None, weighted: bool, similarity: solver.Similarity
) -> None:
    a = matrix(weighted)
    a[:, 9] = a[:, 20]  # equally similar to all: the lower id is the nearer one
    l1, l2, most = 1.0, 2.0, 4
    gram = a.T @ a
    ids = np.random.default_rng(0).permutation(a.shape[1]).astype(np.int32)
    options: dict[str, Any] = {"max_neighbours": most, "similarity": similarity, "ids": ids}
    found = solve(a, l1, l2, head=head, tolerance=1e-8, **options)
    w = dense(found, a.shape[1])
    for i in range(a.shape[1]):
        able = [j for j in range(a.shape[1]) if j != i and gram[i, j] > l1]
        alike = gram[i] ** 2 / np.diag(gram).clip(1) if similarity == "cosine" else gram[i]
        allowed = sorted(able, key=lambda j: (-alike[j], ids[j]))[:most]
        np.testing.assert_allclose(w[i], oracle(a, i, l1, l2, allowed), atol=2e-6)
    assert (np.diff(found.offsets) <= most).all() and found.kkt_residual.max() <= 1e-8


@pytest.mark.parametrize("head", HEADS)
def test_weights_that_still_solve_are_kept(head: int | None) -> None:
    a = matrix(False, shape=(300, 30))
    old = Weights(*solve(a, 2, 2, head=head)[:3])
    more = np.maximum(a, matrix(False, seed=8, shape=(300, 30)) * (np.arange(300) < 4)[:, None])
    full = solve(more, 2, 2, head=head)
    warm = solve(more, 2, 2, head=head, warm_start=old, warm_tolerance=0.02)
    kept = warm.iterations == 0
    assert kept[np.diff(full.offsets) > 0].sum() > 0 and not kept.all()
    assert warm.kkt_residual[~kept].max() <= 1e-6 < warm.kkt_residual[kept].max() <= 0.02
    w, expected, before = (dense(x, 30) for x in (warm, full, Solution(*old, *full[3:])))
    np.testing.assert_array_equal(w[kept], before[kept])
    np.testing.assert_allclose(w[~kept], expected[~kept], atol=1e-5)
    assert warm.objective.sum() == pytest.approx(full.objective.sum(), rel=1e-3)


def test_a_weight_that_may_not_be_is_not_kept() -> None:
    """Item 1 is shared with item 0 by two users, of which λ = 2 leaves nothing."""
    a = np.array([[1, 1], [1, 1], [1, 0]], np.float64)
    old = Weights(np.array([0, 1, 1]), np.array([1], np.int32), np.array([0.1], np.float32))
    found = solve(a, 2, 0, warm_start=old, warm_tolerance=0.9)
    assert len(found.weights) == 0 and found.kkt_residual.max() == 0


def test_a_working_set_stays_in_its_bounds() -> None:
    a = matrix(False, seed=3, shape=(400, 150))
    free = solve(a, 0.05, 20)
    bounded = solve(a, 0.05, 20, max_working_set=40)
    many = np.diff(free.offsets) > 40
    assert many.any() and (bounded.kkt_residual[many] > 1e-6).all()
    assert np.diff(bounded.offsets).max() <= 40


def test_16_bit_counts_give_what_floats_give() -> None:
    a = matrix(False)
    gram = a.T @ a
    items = np.arange(a.shape[1])
    counts, floats = (
        solver.solve(Gram(gram.astype(kind)), np.diag(gram), items, Options(1, 1))
        for kind in (np.uint16, np.float32)
    )
    np.testing.assert_array_equal(counts.weights, floats.weights)


def test_identical_items_without_a_ridge() -> None:
    """G is singular: no unique weights, but an optimum is found and its value is the oracle's."""
    a = matrix(False)
    a[:, 1] = a[:, 0]
    a[:, 2] = a[:, 0]
    found = solve(a, 0.5, 0)
    assert found.kkt_residual.max() <= 1e-6
    best = objective(a, 3, oracle(a, 3, 0.5, 0), 0.5, 0)
    assert found.objective[3] == pytest.approx(best, rel=1e-5)


def test_giving_up_is_told() -> None:
    found = solve(matrix(True), 0.1, 0.1, max_iterations=1)
    assert found.kkt_residual.max() > 1e-6 and found.iterations.max() == 1


def test_options_that_make_no_sense() -> None:
    cases: list[dict[str, Any]] = [
        {"l1": -1.0},
        {"l2": float("nan")},
        {"tolerance": 0.0},
        {"max_iterations": 0},
        {"warm_tolerance": 1.0},
        {"max_neighbours": 0},
        {"similarity": "jaccard"},
    ]
    for wrong in cases:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            solve(matrix(False), **({"l1": 1.0, "l2": 1.0} | wrong))
