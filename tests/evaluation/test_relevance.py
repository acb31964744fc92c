"""Relevance prediction by hand: what is judged, accuracy and AUC."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.evaluation.relevance import judge, relevance_metrics
from recs.ranking.catalogue import ItemCatalogue, write_catalogue
from recs.ranking.popularity import write_popularity

NUM_ITEMS = 12
USERS = (
    "user_id int, history array<int>, values array<float>, seen array<int>, "
    "targets array<int>, disliked array<int>, interacted array<int>"
)


@pytest.fixture(scope="module")
def catalogue(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> ItemCatalogue:
    rows = [(item, 1, item < 10) for item in range(NUM_ITEMS)]
    frame = spark.createDataFrame(rows, "item_id int, train_events bigint, recommendable boolean")
    return write_catalogue(frame, str(tmp_path_factory.mktemp("relevance")), NUM_ITEMS)


@pytest.fixture
def users(spark: SparkSession) -> DataFrame:
    rows = [
        (0, [0], [1.0], [0], [1, 2], [3], [0, 1, 2, 3]),
        (1, [0], [1.0], [0], [4], [], [0, 4]),
        (2, [0], [1.0], [0], [5], [6, 7], list(range(10))),  # nothing is left to draw
    ]
    return spark.createDataFrame(rows, USERS)


def test_held_out_items_are_judged_and_as_many_drawn(
    spark: SparkSession, users: DataFrame, catalogue: ItemCatalogue, tmp_path: Path
) -> None:
    scores = [(item, float(item)) for item in range(NUM_ITEMS)]
    model = write_popularity(
        spark.createDataFrame(scores, "item_id int, score float"), str(tmp_path), NUM_ITEMS
    )
    found = judge(users, [model], catalogue, seed=1).collect()
    assert {row["model"] for row in found} == {"popularity"}
    assert all(row["score"] == row["item_id"] for row in found)
    liked = {(row["user_id"], row["item_id"]) for row in found if row["liked"]}
    assert liked == {(0, 1), (0, 2), (1, 4), (2, 5)}
    others = [(row["user_id"], row["item_id"]) for row in found if not row["liked"]]
    assert {(0, 3), (2, 6), (2, 7)} <= set(others)
    drawn = set(others) - {(0, 3), (2, 6), (2, 7)}
    assert sorted(user for user, _ in drawn) == [0, 0, 1]
    assert all(item in set(range(4, 10)) for user, item in drawn if user == 0)
    again = judge(users.repartition(3), [model], catalogue, seed=1).collect()
    assert sorted(map(str, again)) == sorted(map(str, found))
    other = judge(users, [model], catalogue, seed=2).collect()
    assert sorted(map(str, other)) != sorted(map(str, found))


def test_metrics_by_hand(spark: SparkSession) -> None:
    rows = [
        # User 0: of 2 x 2 pairs of a liked and another item 2 are in order and one is equal.
        *(("a", 0, item, True, score) for item, score in enumerate((2.0, -1.0))),
        *(("a", 0, item, False, score) for item, score in enumerate((2.0, -2.0), 2)),
        ("a", 1, 0, True, 1.0),
        ("a", 1, 1, False, 0.5),
        ("a", 2, 0, True, 1.0),
        ("b", 0, 0, True, 1.0),
        ("slim", 0, 0, True, 3.0),
        ("slim", 0, 1, False, 4.0),
    ]
    judged = spark.createDataFrame(
        rows, "model string, user_id int, item_id int, liked boolean, score float"
    )
    found = relevance_metrics(judged, "test", logits=("a", "b"), replicates=50).collect()
    assert {(row["model"], row["metric"]): (row["value"], row["users"]) for row in found} == {
        ("a", "accuracy"): (pytest.approx((2 + 1 + 1) / 7), 3),
        ("a", "auc"): (pytest.approx((2.5 / 4 + 1) / 2), 2),
        ("b", "accuracy"): (1.0, 1),
        ("slim", "auc"): (0.0, 1),
    }
    assert all(row["lower"] <= row["value"] <= row["upper"] for row in found)
    turned = spark.createDataFrame(rows[::-1], judged.schema).repartition(3)
    again = relevance_metrics(turned, "test", logits=("a", "b"), replicates=50).collect()
    assert sorted(map(str, again)) == sorted(map(str, found))
