"""What models read of users, by hand."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.data.histories import histories, with_candidates

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


def test_histories_are_unique_and_weighted(labelled: DataFrame) -> None:
    found = histories(labelled, ("train",), "weight", exclude_seen=True).orderBy("user_id")
    first, second = found.collect()
    assert (first.history, first["values"], first.history_length) == ([2, 5], [1.0, 5.0], 2)
    assert (second.history, second["values"], second.history_length) == ([], [], 0)
    binary = histories(labelled, ("train", "validation"), "binary", exclude_seen=True)
    (first, _) = binary.orderBy("user_id").collect()
    assert (first.history, first["values"]) == ([2, 3, 5], [1.0, 1.0, 1.0])


def test_histories_hold_what_may_be_read_and_what_may_not_be_shown(labelled: DataFrame) -> None:
    for values in ("binary", "weight"):
        found = histories(labelled, ("train",), values, exclude_seen=True)
        first, second = found.orderBy("user_id").collect()
        assert (first.history, first.seen) == ([2, 5], [2, 5, 7])
        assert (second.history, second.seen) == ([], [])
        shown = histories(labelled, ("train",), values, exclude_seen=False)
        assert shown.orderBy("user_id").collect()[0].seen == [7]


def test_targets_come_with_all_that_is_never_a_negative(labelled: DataFrame) -> None:
    read = histories(labelled, ("train",), "binary", exclude_seen=True, held_out="test")
    assert [
        (r.user_id, r.targets, r.repeats, r.disliked, r.interacted)
        for r in read.orderBy("user_id").collect()
    ] == [(0, [9], [False], [], [2, 3, 5, 7, 9]), (1, [2], [False], [], [2])]


@pytest.mark.parametrize("values", ["binary", "weight"])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_targets_tell_what_the_user_has_had_before(
    spark: SparkSession, values: str, exclude_seen: bool
) -> None:
    rows = [
        (1, 5, 0, "buy", True, 1.0, "train"),
        (1, 4, 1, "hate", False, 1.0, "train"),
        (1, 3, 2, "shown", False, 1.0, "train"),
        (1, 2, 3, "buy", True, 1.0, "validation"),
        (1, 5, 4, "buy", True, 1.0, "test"),
        (1, 4, 5, "buy", True, 1.0, "test"),
        (1, 4, 6, "hate", False, 1.0, "test"),
        (1, 3, 7, "buy", True, 1.0, "test"),
        (1, 2, 8, "buy", True, 1.0, "test"),
        (2, 5, 0, "buy", True, 1.0, "train"),
    ]
    found = histories(
        spark.createDataFrame(rows, SCHEMA).repartition(3),
        ("train",),
        values,  # type: ignore[arg-type]
        exclude_seen=exclude_seen,
        shown=["shown"],
        held_out="test",
    )
    (row,) = found.collect()
    assert row.seen == ([4, 5] if exclude_seen else [4])
    assert row.targets == [2, 3, 4, 5]
    assert row.repeats == [False, False, True, True]
    assert (row.disliked, row.interacted, row.history) == ([], [2, 3, 4, 5], [5])


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
    found = histories(
        spark.createDataFrame(rows, SCHEMA),
        ("train",),
        "binary",
        exclude_seen=True,
        shown=["shown"],
        held_out="test",
    )
    (row,) = found.collect()
    assert (row.user_id, row.targets, row.disliked, row.interacted) == (1, [], [4], [4, 5])


def test_given_candidates_are_of_all_the_users_lists(
    spark: SparkSession, labelled: DataFrame
) -> None:
    lists = spark.createDataFrame([(0, [7, 3]), (0, [3, 1])], "user_id int, candidates array<int>")
    read = histories(labelled, ("train",), "binary", exclude_seen=True)
    found = with_candidates(read, lists).orderBy("user_id").collect()
    assert [row.candidates for row in found] == [[1, 3, 7], []]
