"""Sequences hold the last events in order, whatever the partitioning."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.config import Sequences
from recs.data.sequences import sequences, user_positives

pytestmark = pytest.mark.planner

TYPES = {"view": 0, "like": 1}
START = datetime(2025, 1, 1)


def interactions(
    spark: SparkSession, events: list[tuple], *, parts: int = 2, timed: bool = True
) -> DataFrame:
    """Events are (user, sequence, item, minute, type, split)."""
    rows = [
        (u, i, s, START + timedelta(minutes=m) if timed else None, e, e != "dislike", split)
        for u, s, i, m, e, split in events
    ]
    names = "user_id int, item_id int, sequence int, timestamp timestamp, event_type string"
    return spark.createDataFrame(rows, f"{names}, positive boolean, split string").repartition(
        parts
    )


def rows(df: DataFrame) -> list[tuple]:
    return sorted(tuple(row) for row in df.collect())


def test_last_events_of_each_user(spark: SparkSession) -> None:
    events = [(7, n, 10 + n, n * n, "view", "train") for n in range(5)]
    events += [(9, 0, 3, 0, "like", "train")]
    found = sequences(interactions(spark, events), TYPES, Sequences(length=3))
    assert rows(found) == [
        (7, "train", 0, 4, 3, [12, 13, 14], [0, 0, 0], [180, 300, 420]),
        (9, "train", 0, 0, 1, [3], [1], [0]),
    ]


def test_held_out_events_come_only_where_they_may_be_known(spark: SparkSession) -> None:
    events = [
        (1, 0, 5, 0, "view", "train"),
        (1, 1, 6, 1, "view", "train"),
        (1, 2, 7, 2, "view", "validation"),
        (1, 3, 8, 3, "view", "test"),
        (2, 0, 5, 0, "view", "train"),
    ]
    found = sequences(interactions(spark, events), TYPES, Sequences(length=2))
    assert [row[:6] for row in rows(found)] == [
        (1, "train", 0, 1, 2, [5, 6]),
        (1, "validation", 0, 2, 2, [6, 7]),
        (2, "train", 0, 0, 1, [5]),
    ]


def test_types_that_do_not_enter_are_left_out(spark: SparkSession) -> None:
    events = [(1, 0, 5, 0, "shown", "train"), (1, 1, 6, 1, "view", "train")]
    found = sequences(interactions(spark, events), {"view": 4}, Sequences(length=2))
    assert rows(found) == [(1, "train", 0, 1, 1, [6], [4], [0])]


def test_a_pause_begins_a_session(spark: SparkSession) -> None:
    minutes = [0, 10, 45, 50, 200]
    events = [(1, n, n, m, "view", "train") for n, m in enumerate(minutes)]
    config = Sequences(length=3, session_gap_minutes=30)
    found = sequences(interactions(spark, events), TYPES, config)
    assert [row[2:6] + (row[7],) for row in rows(found)] == [
        (0, 1, 2, [0, 1], [0, 600]),
        (1, 3, 2, [2, 3], [0, 300]),
        (2, 4, 1, [4], [0]),
    ]


def test_windows_cover_the_history_from_its_first_event(spark: SparkSession) -> None:
    events = [(1, n, n, n, "view", "train") for n in range(9)]
    found = sequences(interactions(spark, events), TYPES, Sequences(length=4, stride=2))
    assert [row[5] for row in rows(found)] == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [5, 6, 7, 8],
    ]


def test_data_without_times_has_no_gaps(spark: SparkSession) -> None:
    events = [(1, n, n, n, "view", "train") for n in range(3)]
    config = Sequences(length=3, session_gap_minutes=1)
    found = sequences(interactions(spark, events, timed=False), TYPES, config)
    assert rows(found) == [(1, "train", 0, 2, 3, [0, 1, 2], [0, 0, 0], [0, 0, 0])]


@pytest.mark.parametrize("order", ["user by user", "interleaved", "any"])
@pytest.mark.parametrize("config", [Sequences(length=7), Sequences(length=70, stride=70)])
def test_results_do_not_depend_on_partitions_batches_or_order(
    spark: SparkSession, order: str, config: Sequences
) -> None:
    random = np.random.default_rng(0)
    events, expected, positives = [], {}, {}
    for user in range(40):
        count = 1 if user % 3 else 90
        items = random.integers(0, 30, count).tolist()
        split = ["train"] * max(1, count - 11) + (["validation"] * 10 + ["test"])[: count - 1]
        history = [
            (user, n, item, n * n, "view", s)
            for n, (item, s) in enumerate(zip(items, split, strict=True))
        ]
        events += history
        for upto, known in (("train", ["train"]), ("validation", ["train", "validation"])):
            if upto not in split:
                continue
            of = [e for e in history if e[5] in known]
            gaps = [0, *(60 * (b[3] - a[3]) for a, b in zip(of, of[1:], strict=False))]
            last = slice(-config.length, None)
            expected[user, upto] = [e[2] for e in of][last], gaps[last]
        positives[user] = [sorted({e[2] for e in history if e[5] == s}) for s in set(split)]
    if order == "interleaved":  # ascending runs that lie within each other
        events.sort(key=lambda e: (e[0], e[1] % 2, e[1]))
    elif order == "any":
        random.shuffle(events)
    limit = spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") or ""
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 11)
    try:
        table = interactions(spark, events, parts=1 if order == "user by user" else 3)
        made = rows(sequences(table, TYPES, config))
        wanted = {
            row[0]: [part for part in row[1:] if part] for row in user_positives(table).collect()
        }
    finally:
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", limit)
    assert {row[:2]: (row[5], row[7]) for row in made} == expected
    assert {u: sorted(p) for u, p in wanted.items()} == {u: sorted(p) for u, p in positives.items()}


def test_positives_are_unique_ascending_and_of_their_split(spark: SparkSession) -> None:
    events = [
        (4, 0, 9, 0, "view", "train"),
        (4, 1, 2, 1, "like", "train"),
        (4, 2, 9, 2, "view", "validation"),
        (4, 3, 5, 3, "dislike", "train"),
        (4, 4, 9, 4, "view", "train"),
        (4, 5, 1, 5, "view", "test"),
        (8, 0, 1, 0, "dislike", "train"),
    ]
    assert rows(user_positives(interactions(spark, events))) == [(4, [2, 9], [9], [1])]
