"""What models read of users, by hand."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.data.histories import histories, pairs, with_targets

pytestmark = pytest.mark.planner

SCHEMA = (
    "user_id int, item_id int, sequence int, event_type string, positive boolean, weight double, "
    "split string"
)


@pytest.mark.parametrize("values", ["binary", "weight"])
def test_the_length_of_a_history_does_not_depend_on_what_models_read_of_it(
    spark: SparkSession, values: str
) -> None:
    rows = [
        (1, 5, 0, "buy", True, 2.0, "train"),
        (1, 5, 1, "buy", True, 1.0, "train"),
        (1, 3, 2, "view", True, 0.0, "train"),
        (1, 4, 3, "hate", False, 1.0, "train"),
        (1, 6, 4, "buy", True, 1.0, "test"),
        (2, 3, 0, "view", True, 0.0, "train"),
        (3, 3, 0, "hate", False, 1.0, "train"),
    ]
    interactions = spark.createDataFrame(rows, SCHEMA).repartition(3)
    found = histories(interactions, ("train",), values, exclude_seen=True)  # type: ignore[arg-type]
    read = {
        row["user_id"]: (row["history"], row["values"], row["history_length"])
        for row in found.collect()
    }
    if values == "binary":
        assert read == {1: ([3, 5], [1, 1], 2), 2: ([3], [1], 1), 3: ([], [], 0)}
    else:
        assert read == {1: ([5], [3], 2), 2: ([], [], 1), 3: ([], [], 0)}


def test_pairs_are_unique_and_weighted(labelled: DataFrame) -> None:
    found = pairs(labelled, ("train",), "weight").collect()
    assert sorted((r.user_id, r.item_id, r.value) for r in found) == [(0, 2, 1.0), (0, 5, 5.0)]
    binary = pairs(labelled, ("train", "validation"), "binary").collect()
    assert sorted((r.item_id, r.value) for r in binary) == [(2, 1.0), (3, 1.0), (5, 1.0)]


def test_histories_hold_what_may_be_read_and_what_may_not_be_shown(labelled: DataFrame) -> None:
    first, second = (
        histories(labelled, ("train",), "binary", exclude_seen=True).orderBy("user_id").collect()
    )
    assert (first.history, first["values"], first.seen) == ([2, 5], [1.0, 1.0], [2, 5, 7])
    assert (second.history, second.seen) == ([], [])
    shown = histories(labelled, ("train",), "binary", exclude_seen=False).orderBy("user_id")
    assert shown.collect()[0].seen == [7]


def test_targets_come_with_all_that_is_never_a_negative(labelled: DataFrame) -> None:
    read = histories(labelled, ("train",), "binary", exclude_seen=True)
    rows = with_targets(read, labelled, "test").orderBy("user_id").collect()
    assert [(r.user_id, r.targets, r.positives) for r in rows] == [
        (0, [9], [2, 3, 5, 7, 9]),
        (1, [2], [2]),
    ]


def test_what_is_only_disliked_is_held_out_too_and_what_is_only_shown_may_be_drawn(
    spark: SparkSession,
) -> None:
    rows = [
        (1, 5, 0, "buy", True, 1.0, "train"),
        (1, 4, 1, "hate", False, 1.0, "test"),
        (1, 8, 2, "shown", False, 1.0, "test"),
        (2, 5, 0, "buy", True, 1.0, "train"),
        (2, 8, 1, "shown", False, 1.0, "test"),
    ]
    interactions = spark.createDataFrame(rows, SCHEMA)
    read = histories(interactions, ("train",), "binary", exclude_seen=True, shown=["shown"])
    (row,) = with_targets(read, interactions, "test", shown=["shown"]).collect()
    assert (row.user_id, row.targets, row.disliked, row.positives) == (1, [], [4], [4, 5])
