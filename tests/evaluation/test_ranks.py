"""Metrics of tables of ranks: values, slices, intervals, and independence of partitioning."""

from __future__ import annotations

import numpy as np
import pytest
from pyspark.sql import DataFrame, Row, SparkSession

from recs.evaluation.ranks import DIFFERENCES, METRICS, shortages, sum_ranks

SCHEMA = (
    "model string, protocol string, split string, user_id int, item_id int, rank bigint, "
    "ties bigint, candidates bigint, history_length int, head boolean, repeat boolean"
)


def _ranks(num_users: int = 60) -> list[tuple]:
    """Model good beats model poor for most users; every tenth user is cold and gets nothing."""
    random = np.random.default_rng(3)
    rows = []
    for user in range(num_users):
        for item in range(1 + user % 3):
            place = 1 + 30 * item + int(random.integers(12))
            where = ("full", "test", user, item)
            length = 0 if user % 10 == 0 else user
            cold = length == 0
            for model, rank in (("good", place), ("poor", place + int(random.integers(9)))):
                found = None if cold else rank
                rows.append((model, *where, found, 0, 200, length, item == 0, place % 2 == 0))
    return rows


def _value(rows: list, model: str, metric: str, k: int | None, where: str = "all") -> Row:
    [row] = [r for r in rows if (r.model, r.metric, r.k, r.slice) == (model, metric, k, where)]
    return row


def _sorted(frame: DataFrame) -> list[str]:
    return sorted(map(str, frame.collect()))


def test_values_by_hand(spark: SparkSession) -> None:
    where = ("full", "test")
    ranks = [
        ("m", *where, 1, 10, 1, 0, 5, 3, True, False),
        ("m", *where, 1, 11, 4, 0, 5, 3, False, True),
        ("m", *where, 2, 10, 2, 1, 5, 90, True, True),
        ("m", *where, 3, 12, None, 0, 5, 0, False, False),
    ]
    frame = spark.createDataFrame(ranks, SCHEMA)
    rows = sum_ranks(frame, ks=(2,), replicates=50).metrics(spark).collect()
    expected = {
        ("hr", 2, "all"): (1 / 3, 3),
        ("recall", 2, "all"): (0.5 / 3, 3),
        ("mrr", None, "all"): ((1 + 1 / 3 + 0) / 3, 3),
        ("auc", None, "all"): (((1 + 1 / 3) / 2 + 2 / 4 + 0) / 3, 3),
        ("mrr", None, "warm"): ((1 + 1 / 3) / 2, 2),
        ("mrr", None, "cold"): (0, 1),
        ("mrr", None, "short"): (1, 1),
        ("mrr", None, "long"): (1 / 3, 1),
        ("mrr", None, "head"): ((1 + 1 / 3) / 2, 2),
        ("mrr", None, "tail"): ((1 / 4 + 0) / 2, 2),
        ("mrr", None, "repeat"): ((1 / 4 + 1 / 3) / 2, 2),
        ("mrr", None, "new"): ((1 + 0) / 2, 2),
    }
    for (metric, k, where_), (value, users) in expected.items():
        row = _value(rows, "m", metric, k, where_)
        assert (row.value, row.users) == (pytest.approx(value), users), (metric, where_)
        assert row.lower <= row.value + 1e-12 and row.value <= row.upper + 1e-12
    mean = sum_ranks(frame, ks=(2,), ties="random", replicates=50).metrics(spark).collect()
    assert _value(mean, "m", "mrr", None).value == pytest.approx((1 + (1 / 2 + 1 / 3) / 2) / 3)
    assert {row.ties for row in mean} == {"random"}


def test_same_bits_for_any_partitions_and_order(spark: SparkSession) -> None:
    rows = _ranks()
    expected: list[list[str]] = []
    for partitions, turned in ((1, 1), (3, -1), (7, 1)):
        frame = spark.createDataFrame(rows[::turned], SCHEMA).repartition(partitions)
        totals = sum_ranks(frame, ks=(10,), replicates=40, seed=2)
        found = [_sorted(totals.metrics(spark)), _sorted(totals.differences(spark, "poor"))]
        assert found == (expected or found)
        expected = found


def test_slices_of_tied_targets_do_not_depend_on_the_order_of_rows(spark: SparkSession) -> None:
    where = ("m", "full", "test", 1)
    # Two targets share the first place with each other alone, a third comes after them.
    ranks = [
        (*where, item, 1 + item // 2 * 2, 1 - item // 2, 9, 1, item != 1, None) for item in range(3)
    ]
    for rows in (ranks, ranks[::-1]):
        totals = sum_ranks(spark.createDataFrame(rows, SCHEMA), ks=(1,), replicates=10)
        found = {
            row.slice: row.value
            for row in totals.metrics(spark).where("metric = 'mrr' AND k IS NULL").collect()
        }
        assert found == {"all": 1, "warm": 1, "short": 1, "head": 1 / 2, "tail": 1 / 2, "new": 1}


def test_differences_are_paired(spark: SparkSession) -> None:
    totals = sum_ranks(spark.createDataFrame(_ranks(), SCHEMA), ks=(10,), replicates=200)
    metrics, differences = totals.metrics(spark), totals.differences(spark, "poor")
    assert metrics.schema.simpleString() == spark.createDataFrame([], METRICS).schema.simpleString()
    assert differences.columns == [c.split()[0] for c in DIFFERENCES.split(", ")]
    rows, deltas = metrics.collect(), differences.collect()
    good, poor = (_value(rows, name, "mrr", None) for name in ("good", "poor"))
    delta = _value(deltas, "good", "mrr", None)
    assert delta.value == pytest.approx(good.value - poor.value)
    assert delta.lower > 0 and delta.baseline == "poor"
    # Paired over the same users, so narrower than the two intervals together.
    assert delta.upper - delta.lower < 0.8 * (good.upper - good.lower + poor.upper - poor.lower)
    assert {r.model for r in deltas} == {"good"}


def test_interval_is_that_of_the_mean(spark: SparkSession) -> None:
    # Half of 400 users hit: the standard error of the mean is 0.5 / 20.
    rows = [("m", "full", "test", u, 0, 1 + u % 2, 0, 9, 1, True, False) for u in range(400)]
    frame = spark.createDataFrame(rows, SCHEMA)
    metrics = sum_ranks(frame, ks=(1,), replicates=1000).metrics(spark)
    found = _value(metrics.collect(), "m", "hr", 1)
    assert found.value == 0.5
    assert found.lower == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert found.upper == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_slices_are_optional_and_mistakes_named(spark: SparkSession) -> None:
    frame = spark.createDataFrame(_ranks(12), SCHEMA)
    for dropped, there in (
        (["history_length", "head", "repeat"], {"all"}),
        (["history_length", "repeat"], {"all", "head", "tail"}),
        (["history_length", "head"], {"all", "repeat", "new"}),
    ):
        plain = sum_ranks(frame.drop(*dropped), ks=(10,), replicates=10)
        assert {row.slice for row in plain.metrics(spark).collect()} == there
    with pytest.raises(ValueError, match="ties 'best'"):
        sum_ranks(frame, ties="best")
    with pytest.raises(ValueError, match="ranks lack column candidates"):
        sum_ranks(frame.drop("candidates"))
    with pytest.raises(ValueError, match="baseline worst has no ranks; there are good, poor"):
        sum_ranks(frame, replicates=10).differences(spark, "worst")


def test_shortages_of_sampled_candidates(spark: SparkSession) -> None:
    rows = [
        ("uniform5", 1, 6),
        *[("uniform5", 2, 6)] * 2,  # two targets and four sampled items
        ("uniform5", 3, 1),
        ("popularity9", 1, 10),
        ("full", 1, 3),
    ]
    frame = spark.createDataFrame(rows, "protocol string, user_id int, candidates bigint")
    [short] = shortages(frame, {"uniform5": 5, "popularity9": 9})
    assert (short.protocol, short.wanted, short.targets, short.fewest) == ("uniform5", 5, 3, 0)
    assert "uniform5: 3 targets were ranked among fewer than 5 sampled items" in str(short)
    assert shortages(frame, {}) == shortages(frame, {"popularity9": 9}) == []
