"""Shuffled histories, and how far lists move."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from recs.evaluation.shuffling import jaccard, shuffled

HISTORIES = "user_id int, items array<int>, event_types array<int>, gaps array<int>"


def test_events_change_places_and_nothing_else(spark: SparkSession) -> None:
    events = [(item, item % 2, item * 10) for item in range(20)]
    rows = [(user, *map(list, zip(*events, strict=True))) for user in range(3)]
    rows.append((3, [7], [0], [0]))
    histories = spark.createDataFrame(rows, HISTORIES)
    found = {row["user_id"]: row for row in shuffled(histories, 0, seed=1).collect()}
    for user in range(3):
        row = found[user]
        triples = list(zip(row["items"], row["event_types"], row["gaps"], strict=True))
        assert sorted(triples) == events and triples != events
    assert found[0]["items"] != found[1]["items"]
    assert found[3]["items"] == [7]
    again = {row["user_id"]: row for row in shuffled(histories.repartition(3), 0, 1).collect()}
    assert again == found
    others = [shuffled(histories, *numbers).collect() for numbers in ((1, 1), (0, 2))]
    assert all({row["user_id"]: row for row in rows} != found for rows in others)


def test_jaccard_by_hand(spark: SparkSession) -> None:
    first = [(0, 1), (0, 2), (1, 3), (2, 4)]
    second = [(0, 2), (0, 3), (1, 3), (3, 4)]
    frames = (spark.createDataFrame(rows, "user_id int, item_id int") for rows in (first, second))
    assert jaccard(*frames) == pytest.approx((1 / 3 + 1 + 0 + 0) / 4)
