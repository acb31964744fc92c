"""Rules lost by shuffling: hand-worked logs, and no dependence on partitions or order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.evaluation.sequentiality import Loss, losses


def _interactions(spark: SparkSession, histories: Sequence[Sequence[int]]) -> DataFrame:
    rows = [
        (user, item, place)
        for user, items in enumerate(histories)
        for place, item in enumerate(items)
    ]
    return spark.createDataFrame(rows, "user_id int, item_id int, sequence int")


def _losses(interactions: DataFrame, **settings: float) -> list[Loss]:
    given = {"min_count": 3, "min_confidence": 0.0, "shuffles": 2, "seed": 1, **settings}
    return losses(interactions, **given)  # type: ignore[arg-type]


def test_a_log_of_fixed_chains_loses_nearly_all_of_its_rules(spark: SparkSession) -> None:
    chain = list(range(40))
    found = _losses(_interactions(spark, [chain[start:] + chain[:start] for start in range(20)]))
    # The chain is a circle of 40 items, cut at another place for each user, so that each of the
    # 40 rules of two and of three items occurs at least 18 times.
    assert [(loss.items, loss.rules) for loss in found] == [(2, 40), (2, 40), (3, 40), (3, 40)]
    for loss in found:
        if loss.items == 3:
            assert (loss.shuffled_rules, loss.lost) == (0, 40)
        else:
            assert loss.lost > 35


def test_a_log_without_order_loses_nothing(spark: SparkSession) -> None:
    rng = np.random.default_rng(5)
    histories = [list(rng.permutation(4)) for _ in range(300)]
    found = _losses(_interactions(spark, [list(map(int, items)) for items in histories]))
    # Four items give 12 ordered pairs (75 times each, about) and 24 triples (25 times each).
    assert {(loss.items, loss.rules, loss.shuffled_rules, loss.lost) for loss in found} == {
        (2, 12, 12, 0),
        (3, 24, 24, 0),
    }


def test_a_rule_is_frequent_and_likely(spark: SparkSession) -> None:
    # (0, 1) occurs three times, and 0 four times; (1, 2) three times as 1 does; (2, 0) once.
    interactions = _interactions(spark, [[0, 1, 2], [0, 1, 2], [0, 1, 2, 0], [3]])

    def rules(**settings: float) -> list[int]:
        return [loss.rules for loss in _losses(interactions, shuffles=1, **settings)]

    assert rules() == [2, 1]
    assert rules(min_count=1) == [3, 2]  # (2, 0) and (1, 2, 0) too
    assert rules(min_count=4) == [0, 0]
    assert rules(min_confidence=0.75) == [2, 1]
    assert rules(min_confidence=0.8) == [1, 1]  # (0, 1, 2) follows each of the three (0, 1)


def test_counts_agree_with_python(spark: SparkSession) -> None:
    rng = np.random.default_rng(0)
    histories = [list(map(int, rng.zipf(1.5, size) % 30)) for size in rng.integers(1, 40, 50)]
    pairs = Counter(pair for items in histories for pair in zip(items, items[1:], strict=False))
    triples = Counter(
        triple for items in histories for triple in zip(items, items[1:], items[2:], strict=False)
    )
    single = Counter(item for items in histories for item in items)
    two = [pair for pair, n in pairs.items() if n >= 4 and n >= 0.2 * single[pair[0]]]
    three = [triple for triple, n in triples.items() if n >= 4 and n >= 0.2 * pairs[triple[:2]]]
    found = _losses(_interactions(spark, histories), min_count=4, min_confidence=0.2)
    assert [loss.rules for loss in found] == [len(two)] * 2 + [len(three)] * 2
    assert len(two) > 5 and len(three) > 5


@pytest.mark.parametrize("num_partitions", [1, 5])
def test_partitions_and_order_of_rows_change_nothing(
    spark: SparkSession, num_partitions: int
) -> None:
    rng = np.random.default_rng(0)
    interactions = _interactions(spark, [list(map(int, rng.integers(0, 8, 30))) for _ in range(30)])
    expected = _losses(interactions)
    assert len({loss.lost for loss in expected}) > 1
    moved = interactions.orderBy("item_id", "sequence").repartition(num_partitions)
    assert _losses(moved) == expected
    assert _losses(interactions, seed=2) != expected
