"""Splits worked out by hand; the same under any partitioning."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.config import Events, Split
from recs.data.split import (
    SplitError,
    interactions,
    is_per_user,
    telling_unknown_types,
    weighted,
)

pytestmark = pytest.mark.planner

EVENTS = (
    "event_id bigint, user string, item string, timestamp timestamp, position bigint, "
    "event_type string, weight double, positive boolean, context map<string,string>, "
    "held_out string, source int, line bigint"
)

Event = tuple[str, str, dict[str, Any]]


def event(user: str, item: str, **changes: Any) -> Event:
    return user, item, changes


def table(spark: SparkSession, rows: Iterable[Event], parts: int = 2) -> DataFrame:
    full = []
    for line, (user, item, changes) in enumerate(rows):
        row = {
            "timestamp": None,
            "position": None,
            "event_type": "view",
            "weight": 1.0,
            "positive": True,
            "context": None,
            "held_out": None,
            "source": 0,
            "line": line,
        } | changes
        full.append((row["line"], user, item, *row.values()))
    return spark.createDataFrame(full, EVENTS).repartition(parts)


def split(
    spark: SparkSession,
    rows: Iterable[Event],
    *,
    parts: int = 2,
    hold_out: bool = True,
    **settings: Any,
) -> list[tuple[str, str, int, str]]:
    """Return (user, item, sequence, split) in order; users and items are named by their number."""
    rows = list(rows)
    users = sorted({user for user, _, _ in rows})
    items = sorted({item for _, item, _ in rows})
    user_ids = spark.createDataFrame(
        [(u, n) for n, u in enumerate(users)], "user string, user_id int"
    )
    item_ids = spark.createDataFrame(
        [(i, n) for n, i in enumerate(items)], "item string, item_id int"
    )
    # Source 0 comes after source 1, whose path sorts before.
    order = spark.createDataFrame([(0, 1), (1, 0)], "source int, source_order int")
    out = interactions(
        table(spark, rows, parts),
        order,
        user_ids,
        item_ids,
        Split(**settings),
        num_items=len(items),
        hold_out=hold_out,
        files_give_validation=False,
        seed=7,
    )
    return sorted((users[r.user_id], items[r.item_id], r.sequence, r.split) for r in out.collect())


def labels(rows: list[tuple[str, str, int, str]], user: str = "u") -> str:
    """The splits of a user's events in order, by first letters."""
    ordered = sorted((sequence, label) for name, _, sequence, label in rows if name == user)
    return "".join(label[0] for _, label in ordered)


def test_leave_one_out_takes_the_last_two(spark: SparkSession) -> None:
    rows = split(spark, [event("u", item) for item in "abcd"])
    assert rows == [
        ("u", "a", 0, "train"),
        ("u", "b", 1, "train"),
        ("u", "c", 2, "validation"),
        ("u", "d", 3, "test"),
    ]


def test_short_histories_are_all_training(spark: SparkSession) -> None:
    assert labels(split(spark, [event("u", "a"), event("u", "b")])) == "tt"
    assert {row[3] for row in split(spark, [event("u", "a"), event("u", "b")])} == {"train"}


def test_a_dislike_is_never_a_target_and_its_future_is_cut(spark: SparkSession) -> None:
    rows = [event("u", item, positive=item not in "xy") for item in "abxcyd"]
    found = split(spark, rows + [event("u", "z", positive=False)])
    by_item = {item: label for _, item, _, label in found}
    assert by_item["c"] == "validation" and by_item["d"] == "test"
    assert by_item["x"] == "train" and by_item["y"] == "validation" and by_item["z"] == "test"


def test_order_is_time_then_position_then_source_and_line(spark: SparkSession) -> None:
    noon = datetime(2025, 1, 1, 12)
    rows = [
        event("u", "d", timestamp=noon, position=2),
        event("u", "c", timestamp=noon, position=1, source=0, line=0),
        event("u", "b", timestamp=noon, position=1, source=1, line=9),
        event("u", "a", timestamp=datetime(2025, 1, 1, 11), position=5),
    ]
    assert [item for _, item, _, _ in sorted(split(spark, rows), key=lambda row: row[2])] == list(
        "abcd"
    )


def test_global_time_cuts_at_the_two_moments(spark: SparkSession) -> None:
    rows = [event("u", item, timestamp=datetime(2025, 1, n + 1)) for n, item in enumerate("abcde")]
    found = split(
        spark, rows, method="global_time", validation_from="2025-01-03", test_from="2025-01-05"
    )
    assert [row[3] for row in found] == ["train", "train", "validation", "validation", "test"]


def test_random_draws_by_user_and_leaves_training(spark: SparkSession) -> None:
    rows = [event(user, item) for user in "uvw" for item in "abcde"] + [event("x", "a")]
    found = split(spark, rows, method="random")
    for user in "uvw":
        assert sorted(labels(found, user)) == sorted("tttvt")
        mine = [row[3] for row in found if row[0] == user]
        assert mine.count("validation") == 1 and mine.count("test") == 1
    assert [row[3] for row in found if row[0] == "x"] == ["train"]


def test_files_give_test_and_a_random_training_item_is_validation(spark: SparkSession) -> None:
    rows = [event("u", item, held_out="train") for item in "abc"] + [
        event("u", "z", held_out="test")
    ]
    found = split(spark, rows, method="files")
    assert ("test", [row[1] for row in found if row[3] == "test"]) == ("test", ["z"])
    assert [row[3] for row in found].count("validation") == 1


@pytest.mark.parametrize("method", ["leave_one_out", "random"])
def test_targets_do_not_depend_on_partitioning(spark: SparkSession, method: str) -> None:
    rows = [event(f"u{n % 7}", f"i{n % 11}", line=n) for n in range(100)]
    once = split(spark, rows, method=method)
    assert split(spark, rows, method=method, parts=5) == once
    assert split(spark, list(reversed(rows)), method=method, parts=1) == once


def test_serve_mode_holds_nothing_out(spark: SparkSession) -> None:
    rows = [event("u", item) for item in "abcd"]
    assert {row[3] for row in split(spark, rows, hold_out=False)} == {"train"}


def test_k_core_goes_on_until_none_is_left_to_drop(spark: SparkSession) -> None:
    # c has one event, so it goes; then v has one left and goes; then b has one left and goes.
    rows = [event("u", "a"), event("w", "a"), event("v", "b"), event("v", "c"), event("u", "b")]
    rows += [event("u", "d"), event("w", "d")]
    found = split(spark, rows, min_user_events=2, min_item_events=2)
    assert {(user, item) for user, item, _, _ in found} == {
        ("u", "a"), ("w", "a"), ("u", "d"), ("w", "d"),
    }  # fmt: skip


def test_a_minimum_of_one_drops_nothing(spark: SparkSession) -> None:
    # What u dislikes, and nobody likes, stays known; v has too few positive events.
    rows = [event("u", "a"), event("u", "b"), event("v", "a")]
    rows += [event("u", "z", positive=False), event("v", "z", positive=False)]
    found = split(spark, rows, min_user_events=2)
    assert {(user, item) for user, item, _, _ in found} == {("u", "a"), ("u", "b"), ("u", "z")}


@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        ({}, True),
        ({"min_user_events": 2}, True),
        ({"max_user_events": 4}, True),
        ({"max_user_events": 4, "min_user_events": 2}, False),
        ({"max_user_events": 4, "over_cap": "drop"}, False),
        ({"min_item_events": 2}, False),
    ],
)
def test_users_are_split_alone_unless_one_can_vanish(settings: dict[str, Any], alone: bool) -> None:
    assert is_per_user(Split(**settings)) is alone


def test_users_over_the_cap(spark: SparkSession) -> None:
    rows = [event("bot", item) for item in "abcdef"] + [event("u", item) for item in "abc"]
    latest = split(spark, rows, max_user_events=4)
    assert [row[1] for row in latest if row[0] == "bot"] == list("cdef")
    dropped = split(spark, rows, max_user_events=4, over_cap="drop")
    assert {row[0] for row in dropped} == {"u"}


def test_merged_repeats_are_one_event_at_the_last_place(spark: SparkSession) -> None:
    rows = [event("u", "a"), event("u", "b"), event("u", "a"), event("u", "c")]
    assert [row[1:3] for row in split(spark, rows)] == [("a", 0), ("a", 2), ("b", 1), ("c", 3)]
    merged = split(spark, rows, repeats="merge")
    assert [row[1:3] for row in merged] == [("a", 1), ("b", 0), ("c", 2)]


def test_weights_and_polarities_come_of_the_settings(spark: SparkSession) -> None:
    source = {"path": "x", "columns": {"user": "u", "item": "i", "timestamp": None}}
    types = {"view": {}, "buy": {"weight": 3}, "dislike": {"polarity": "negative"}}
    settings = Events.model_validate({"sources": [source], "types": types})
    rows = [("buy", 2.0), (None, None), ("dislike", 1.5)]
    events = spark.createDataFrame(rows, "event_type string, value double")
    found = [(r.event_type, r.weight, r.positive) for r in weighted(events, settings).collect()]
    assert found == [("buy", 6.0, True), ("view", 1.0, True), ("dislike", 1.5, False)]
    left = {name: kind for name, kind in settings.types.items() if name != "dislike"}
    gone = settings.model_copy(update={"types": left})
    with (
        pytest.raises(SplitError, match="type dislike, which events.types no longer lists"),
        telling_unknown_types(),
    ):
        weighted(events, gone).collect()
