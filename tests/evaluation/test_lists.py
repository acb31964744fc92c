"""Metrics of lists by hand, and their independence of partitioning and order."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from recs.evaluation import lists
from recs.evaluation.lists import evaluate_lists, write_categories
from recs.ranking.catalogue import ItemCatalogue, write_catalogue

RECOMMENDATIONS = "model string, user_id int, rank int, item_id int"


def test_docstring_examples() -> None:
    assert doctest.testmod(lists) == (0, 3)


@pytest.fixture(scope="module")
def catalogue(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> ItemCatalogue:
    """Five items; the last is not recommendable. 16 events in all."""
    rows = [(0, 8, True), (1, 4, True), (2, 2, True), (3, 1, True), (4, 1, False)]
    frame = spark.createDataFrame(rows, "item_id int, train_events bigint, recommendable boolean")
    return write_catalogue(frame, str(tmp_path_factory.mktemp("lists")), 5)


def test_values_by_hand(spark: SparkSession, catalogue: ItemCatalogue, tmp_path: Path) -> None:
    categories = write_categories(
        spark.createDataFrame(
            [(0, "a"), (1, "a"), (1, "b"), (2, "c"), (0, "a")], "item_id int, category string"
        ),
        str(tmp_path),
        5,
    )
    rows = [("m", 1, 1, 0), ("m", 1, 2, 1), ("m", 1, 3, 2), ("m", 2, 1, 0), ("m", 2, 2, 3)]
    found = {
        (r.metric, r.k): r
        for r in evaluate_lists(
            spark.createDataFrame(rows, RECOMMENDATIONS), catalogue, categories, (1, 3)
        ).collect()
    }
    # Events 8, 4, 2, 1 of 16: 1, 2, 3, 4 bits. Percentiles .875, .625, .375, .125.
    # Cosines of user 1's pairs: (0,1) 1/√2, (0,2) 0, (1,2) 0. User 2 has one item with categories.
    expected = {
        ("novelty", 1): (1, 2),
        ("novelty", 3): (((1 + 2 + 3) / 3 + (1 + 4) / 2) / 2, 2),
        ("popularity_bias", 1): (0.875, 2),
        ("popularity_bias", 3): ((1.875 / 3 + 1 / 2) / 2, 2),
        ("diversity", 3): (1 - (1 / 2**0.5) / 3, 1),
        ("coverage", 1): (1 / 4, 2),
        ("coverage", 3): (1, 2),
        ("gini", 1): (3 / 4, 2),
        ("gini", 3): ((-3 - 1 + 1 + 3 * 2) / (4 * 5), 2),
    }
    assert set(found) == set(expected)
    for key, (value, users) in expected.items():
        assert (found[key].value, found[key].users) == (pytest.approx(value), users), key
    assert found["coverage", 3].lower is None and found["novelty", 3].lower is not None


def test_same_bits_for_any_partitions_and_order(
    spark: SparkSession, catalogue: ItemCatalogue, tmp_path: Path
) -> None:
    pairs = [(item, name) for item in range(5) for name in "abc"[: 1 + item % 3]]
    random = np.random.default_rng(4)
    rows = [
        (model, user, 1 + n, int(item))
        for model in ("one", "two")
        for user in range(40)
        for n, item in enumerate(random.permutation(5)[: 1 + user % 5])
    ]
    results = []
    for partitions, turned in ((1, 1), (4, -1), (7, 1)):
        categories = write_categories(
            spark.createDataFrame(pairs[::turned], "item_id int, category string"),
            str(tmp_path),
            5,
        )
        frame = spark.createDataFrame(rows[::turned], RECOMMENDATIONS).repartition(partitions)
        found = evaluate_lists(frame, catalogue, categories, (2, 5), replicates=30)
        results.append(sorted(map(str, found.collect())))
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 2 * 2 * 5


def test_mistakes_are_named(spark: SparkSession, catalogue: ItemCatalogue, tmp_path: Path) -> None:
    empty = spark.createDataFrame([], "item_id int, category string")
    with pytest.raises(ValueError, match="no item has a category"):
        write_categories(empty, str(tmp_path), 5)
    with pytest.raises(ValueError, match="recommendations lack column model, rank, user_id"):
        evaluate_lists(empty, catalogue)
