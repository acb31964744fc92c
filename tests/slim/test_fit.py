"""SLIM on Spark gives what the solver gives, however the work is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.arrays.matrix import CsrFiles, MatrixError, write_array, write_manifest
from recs.slim import budget, streamed
from recs.slim.budget import BudgetError, Plan
from recs.slim.fit import (
    NotConverged,
    fit,
    item_weights,
    prepare,
    require_converged,
    solve,
    write_weights,
)
from recs.slim.gram import Gram
from recs.slim.solver import Options, Similarity
from recs.slim.solver import solve as solve_here
from recs.slim.streamed import StreamedProblem

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
@pytest.mark.parametrize("head", [N, 7, 0])
def test_any_number_of_blocks_and_any_order(
    spark: SparkSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weighted: bool,
    head: int,
) -> None:
    given = Plan(head, N, 0, 0, 0)
    monkeypatch.setattr(budget, "plan", lambda *_, **__: given)
    a = matrix(weighted)
    gram = (a.T @ a).astype(np.float32)
    expected = solve_here(Gram(gram), np.diag(gram), np.arange(N), Options(1, 2))
    for blocks in (1, 2, 5):
        fits = fit(
            interactions(spark, a, blocks),
            str(tmp_path / str(blocks)),
            Options(1, 2),
            num_users=M,
            num_items=N,
            blocks=blocks,
        )
        rows = sorted(fits.collect(), key=lambda row: row.item_id)
        assert [row.item_id for row in rows] == list(range(N))
        assert all(row.converged and row.nonzeros == len(row.weights) for row in rows)
        assert rows[4].neighbours == [] and rows[4].objective == 0
        assert [j for row in rows for j in row.neighbours] == expected.neighbours.tolist()
        np.testing.assert_allclose(
            [w for row in rows for w in row.weights], expected.weights, 1e-4, 1e-6
        )
        np.testing.assert_allclose([row.objective for row in rows], expected.objective, 1e-6)


def test_one_problem_solved_twice_the_second_time_warm(spark: SparkSession, tmp_path: Path) -> None:
    problem = prepare(
        interactions(spark, matrix(True)), str(tmp_path / "p"), num_users=M, num_items=N
    )
    first = solve(spark, problem, Options(1, 2)).persist()
    require_converged(first)
    start = write_weights(item_weights(first), str(tmp_path / "w"), num_items=N)
    cold = solve(spark, problem, Options(1.2, 2)).orderBy("item_id").collect()
    warm = solve(spark, problem, Options(1.2, 2), warm_start=start).orderBy("item_id").collect()
    for one, other in zip(cold, warm, strict=True):
        assert one.neighbours == other.neighbours
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-5)
    assert sum(row.iterations for row in warm) < sum(row.iterations for row in cold)


def test_only_items_that_violate_are_solved_again(spark: SparkSession, tmp_path: Path) -> None:
    a = matrix(False)
    more = a.copy()
    more[:2, 10] = 1
    old = fit(interactions(spark, a), str(tmp_path / "a"), Options(2, 2), num_users=M, num_items=N)
    old = old.persist()
    assert require_converged(old) == old.where("nonzeros > 0").count()
    options = Options(2, 2, warm_tolerance=0.03)
    kept: list[set[int]] = []
    for blocks in (1, 3):
        fits = fit(
            interactions(spark, more, blocks),
            str(tmp_path / f"b{blocks}"),
            options,
            num_users=M,
            num_items=N,
            warm_start=item_weights(old),
            blocks=blocks,
        ).persist()
        solved = require_converged(fits)
        assert 0 < solved < N - 1 and solved == fits.where("iterations > 0").count()
        same = fits.join(old, ["item_id", "neighbours", "weights"]).where(fits.iterations == 0)
        assert same.count() == N - solved
        kept.append({row.item_id for row in same.select("item_id").collect()})
    assert kept[0] == kept[1]


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
        require_converged(solve(spark, problem, Options(0.1, 0.1, max_iterations=1)))


def test_negative_values_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.createDataFrame([(0, 0, -1.0), (0, 1, 1.0)], SCHEMA)
    with pytest.raises(MatrixError, match="'value' goes down to -1"):
        prepare(df, str(tmp_path), num_users=1, num_items=2)


def test_values_that_no_float32_holds_squared_are_refused_or_as_none(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = [(0, 0, 2.0), (0, 1, 1e-50), (1, 0, 1e-30), (1, 1, 3.0), (2, 0, 1.0), (2, 1, 1.0)]
    df = spark.createDataFrame(rows, SCHEMA.replace("float", "double"))
    for given, nonzeros in ((df, 1), (df.where("value < 1e-20"), 0)):
        folder = str(tmp_path / str(nonzeros))
        fits = fit(given, folder, Options(0.1, 0.1), num_users=3, num_items=2)
        assert [(row.converged, row.nonzeros) for row in fits.collect()] == [(True, nonzeros)] * 2
    huge = df.withColumn("value", df.value * 1e20)
    with pytest.raises(MatrixError, match=r"goes up to 3e\+20: .* 3 users .* slim.values=binary"):
        prepare(huge, str(tmp_path / "c"), num_users=3, num_items=2)


def test_a_matrix_that_does_not_fit_a_host_is_refused_without_neighbours(
    spark: SparkSession, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match="raise it, or set slim.max_neighbours"):
        prepare(
            interactions(spark, matrix(False)),
            str(tmp_path),
            num_users=M,
            num_items=N,
            memory_budget_bytes=20_000,
        )


def test_files_too_large_for_a_task_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"largest file .* has \d+ entries.*shuffle.partitions"):
        prepare(
            interactions(spark, matrix(False)),
            str(tmp_path),
            num_users=M,
            num_items=N,
            memory_budget_bytes=2_000,
            max_neighbours=5,
        )


@pytest.mark.parametrize(("weighted", "similarity"), [(True, "cosine"), (False, "cooccurrence")])
def test_neighbours_of_a_matrix_that_no_host_holds(
    spark: SparkSession, tmp_path: Path, weighted: bool, similarity: Similarity
) -> None:
    a = matrix(weighted)
    a[:, 9] = a[:, 20]
    options = Options(2, 2, max_neighbours=5, similarity=similarity)
    gram = (a.T @ a).astype(np.float32)
    expected = solve_here(Gram(gram), np.diag(gram), np.arange(N), options)
    for blocks in (1, 3):
        problem = prepare(
            interactions(spark, a, blocks),
            str(tmp_path / str(blocks)),
            num_users=M,
            num_items=N,
            memory_budget_bytes=30_000 if blocks > 1 else 40_000,
            max_neighbours=5,
            blocks=blocks,
        )
        assert isinstance(problem, StreamedProblem)
        problem = replace(problem, table_items=7 * blocks)  # of few items, more passes
        rows = solve(spark, problem, options, blocks=blocks).orderBy("item_id").collect()
        assert [row.item_id for row in rows] == list(range(N))
        assert all(row.converged for row in rows)
        assert [j for row in rows for j in row.neighbours] == expected.neighbours.tolist()
        weights = [w for row in rows for w in row.weights]
        np.testing.assert_allclose(weights, expected.weights, 1e-4, 1e-6)
        np.testing.assert_allclose([row.objective for row in rows], expected.objective, 1e-6)
    fits = spark.createDataFrame(rows)
    start = write_weights(item_weights(fits), str(tmp_path / "w"), num_items=N)
    again = solve(spark, problem, options._replace(warm_tolerance=1e-3), warm_start=start, blocks=2)
    kept = again.orderBy("item_id").collect()
    assert all(row.iterations == 0 for row in kept)
    assert [row.weights for row in kept] == [row.weights for row in rows]


def test_items_of_one_streamed_table_share_any_number_of_users(tmp_path: Path) -> None:
    times, height = 257, 2**16  # 2^24 + 2^16 users, of one file that is read again and again
    shard = {"name": "s", "start": 0, "stop": height, "nnz": 2 * height, "least": 1, "greatest": 1}
    write_array(str(tmp_path), "s-counts.npy", np.full(height, 2))
    write_array(str(tmp_path), "s-indices.npy", np.tile(np.array([0, 2], np.int32), height))
    write_manifest(str(tmp_path), {"dtype": None, "shards": [shard] * times})
    by_user = CsrFiles(str(tmp_path))
    problem = StreamedProblem(times * height, 3, by_user, by_user, str(tmp_path), 2)
    table = streamed._table(problem, np.array([0, 2]))
    assert table.itemsize == 4
    assert np.triu(table).tolist() == [[times * height] * 2, [0, times * height]]
