"""SLIM on Spark gives what the solver gives, however the work is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.matrix import MatrixError
from recs.slim.fit import (
    NotConverged,
    fit,
    item_weights,
    prepare,
    require_converged,
    solve,
    write_weights,
)
from recs.slim.solver import DenseGram
from recs.slim.solver import solve as solve_here

M, N = 60, 23
SCHEMA = "user_id int, item_id int, value float"


def matrix(weighted: bool) -> np.ndarray:
    rng = np.random.default_rng(1)
    a = (rng.random((M, N)) < 0.3).astype(np.float32)
    a[:, 4] = 0  # an item without an event
    return a * rng.integers(1, 6, a.shape) if weighted else a


def interactions(spark: SparkSession, a: np.ndarray, partitions: int = 1) -> DataFrame:
    users, items = np.nonzero(a)
    rows = [(int(u), int(i), float(a[u, i])) for u, i in zip(users, items, strict=True)]
    np.random.default_rng(partitions).shuffle(rows)
    return spark.createDataFrame(rows, SCHEMA).repartition(partitions)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("budget", [2**20, 0])
def test_any_number_of_blocks_and_any_order(
    spark: SparkSession, tmp_path: Path, weighted: bool, budget: int
) -> None:
    a = matrix(weighted)
    gram = (a.T @ a).astype(np.float32)
    expected = solve_here(DenseGram(gram), np.diag(gram), np.arange(N), l1=1, l2=2)
    for blocks in (1, 2, 5):
        fits = fit(
            interactions(spark, a, blocks),
            str(tmp_path / str(blocks)),
            num_users=M,
            num_items=N,
            l1=1,
            l2=2,
            memory_budget_bytes=budget,
            blocks=blocks,
        )
        rows = sorted(fits.collect(), key=lambda row: row.item_id)
        assert [row.item_id for row in rows] == list(range(N))
        assert all(row.converged and row.nonzeros == len(row.weights) for row in rows)
        assert rows[4].neighbours == [] and rows[4].objective == 0
        assert [j for row in rows for j in row.neighbours] == expected.neighbours.tolist()
        np.testing.assert_allclose([w for row in rows for w in row.weights], expected.weights, 1e-5)
        np.testing.assert_allclose([row.objective for row in rows], expected.objective, 1e-6)


def test_one_problem_solved_twice_the_second_time_warm(spark: SparkSession, tmp_path: Path) -> None:
    problem = prepare(
        interactions(spark, matrix(True)), str(tmp_path / "p"), num_users=M, num_items=N
    )
    first = solve(spark, problem, l1=1, l2=2).persist()
    require_converged(first)
    start = write_weights(item_weights(first), str(tmp_path / "w"), num_items=N)
    cold = solve(spark, problem, l1=1.2, l2=2).orderBy("item_id").collect()
    warm = solve(spark, problem, l1=1.2, l2=2, warm_start=start).orderBy("item_id").collect()
    for one, other in zip(cold, warm, strict=True):
        assert one.neighbours == other.neighbours
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-5)
    assert sum(row.iterations for row in warm) < sum(row.iterations for row in cold)


def test_weights_as_rows(spark: SparkSession) -> None:
    fits = spark.createDataFrame(
        [(0, [1, 2], [0.5, 0.25]), (1, [], [])],
        "item_id int, neighbours array<int>, weights array<float>",
    )
    rows = sorted(map(tuple, item_weights(fits).collect()))
    assert rows == [(0, 1, 0.5), (0, 2, 0.25)]


def test_weights_that_are_no_solution_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    a = matrix(True)
    problem = prepare(interactions(spark, a), str(tmp_path), num_users=M, num_items=N)
    with pytest.raises(NotConverged, match=r"\d+ items have not converged.*raise max_iterations"):
        require_converged(solve(spark, problem, l1=0.1, l2=0.1, max_iterations=1))


def test_negative_values_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.createDataFrame([(0, 0, -1.0), (0, 1, 1.0)], SCHEMA)
    with pytest.raises(MatrixError, match="'value' goes down to -1"):
        prepare(df, str(tmp_path), num_users=1, num_items=2)
