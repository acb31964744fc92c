"""Negatives of events: against a plain search of what is allowed, in any partitioning."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.config import NegativeRule, Negatives
from recs.data.negatives import negatives, rule_groups
from recs.errors import UserError

pytestmark = pytest.mark.planner

NUM_ITEMS = 40
FIT = ("train", "validation")
#: (user, sequence) -> (item, negatives)
Drawn = dict[tuple[int, int], tuple[int, list[int]]]


def _event(user: int, item: int, sequence: int, kind: str = "view", split: str = "train") -> tuple:
    return user, item, sequence, kind, kind == "view", split


def _events() -> list[tuple]:
    """Users with gaps in their ids and sequences; the last items of each are held out."""
    rows = []
    for user in (0, 3, 4, 1_000_000):
        for n in range(12):
            split = "train" if n < 9 else ("validation" if n < 11 else "test")
            rows.append(_event(user, (user + 3 * n) % 30, 2 * n, split=split))
        rows.append(_event(user, 35, 31, "dislike"))
        rows.append(_event(user, user % 30, 32, "dislike"))  # wanted after all
        rows.append(_event(user, 36, 33, "dislike", "test"))
    return rows


EVENTS = _events()
#: Items 38 and 39 are not recommendable; 37 has no row.
CATALOGUE = [(item, item + 1, item < 38) for item in range(NUM_ITEMS) if item != 37]


def _draw(
    spark: SparkSession,
    folder: Path,
    config: Negatives,
    events: list[tuple] = EVENTS,
    items: DataFrame | None = None,
    partitions: int = 2,
    seed: int = 1,
) -> Drawn:
    columns = "user_id int, item_id int, sequence int, event_type string, positive boolean"
    interactions = spark.createDataFrame(events, f"{columns}, split string")
    lists = {
        split: sorted({(e[0], e[1]) for e in events if e[4] and e[5] == split})
        for split in ("train", "validation", "test")
    }
    users = sorted({user for pairs in lists.values() for user, _ in pairs})
    rows = [
        (user, *([item for u, item in pairs if u == user] or None for pairs in lists.values()))
        for user in users
    ]
    arrays = "train array<int>, validation array<int>, test array<int>"
    spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
    try:
        drawn = negatives(
            interactions,
            spark.createDataFrame(rows, f"user_id int, {arrays}"),
            spark.createDataFrame(
                CATALOGUE, "item_id int, train_events bigint, recommendable boolean"
            ),
            items,
            config,
            fit_splits=FIT,
            folder=str(folder),
            num_items=NUM_ITEMS,
            seed=seed,
        ).collect()
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "2")
    return {(r["user_id"], r["sequence"]): (r["item_id"], r["negatives"]) for r in drawn}


def _wanted(user: int, events: list[tuple] = EVENTS) -> set[int]:
    return {e[1] for e in events if e[0] == user and e[4] and e[5] in FIT}


@pytest.mark.parametrize("sampler", ["uniform", "popularity"])
def test_one_row_a_positive_event_and_never_a_positive(
    spark: SparkSession, tmp_path: Path, sampler: str
) -> None:
    config = Negatives(sampler=sampler, per_positive=5)  # type: ignore[arg-type]
    drawn = _draw(spark, tmp_path, config)
    fitted = {(e[0], e[2]): e[1] for e in EVENTS if e[4] and e[5] in FIT}
    assert {key: item for key, (item, _) in drawn.items()} == fitted
    for (user, _), (_, items) in drawn.items():
        assert len(set(items)) == len(items) == 5
        assert not set(items) & _wanted(user)
        assert max(items) < 37
    held_out = {e[1] for e in EVENTS if e[5] == "test" and e[4]}
    assert held_out & {item for _, items in drawn.values() for item in items}


def test_same_for_any_partitions_and_order(spark: SparkSession, tmp_path: Path) -> None:
    config = Negatives(per_positive=4, explicit=["dislike"])
    drawn = _draw(spark, tmp_path, config)
    for partitions, events in ((1, EVENTS[::-1]), (7, EVENTS[5:] + EVENTS[:5])):
        assert _draw(spark, tmp_path, config, events, partitions=partitions) == drawn
    assert _draw(spark, tmp_path, config, seed=2) != drawn
    # What a user gets does not hang on the others.
    alone = _draw(spark, tmp_path, config, [e for e in EVENTS if e[0] == 4])
    assert alone == {key: value for key, value in drawn.items() if key[0] == 4}


def test_explicit_negatives_come_first(spark: SparkSession, tmp_path: Path) -> None:
    events = [_event(1, item, item) for item in range(3)]
    events += [_event(1, item, 10 + item, "dislike") for item in (30, 31, 38)]
    events += [_event(1, 33, 50, "dislike", "test"), _event(1, 34, 51, "skip")]
    drawn = _draw(spark, tmp_path, Negatives(per_positive=2, explicit=["dislike"]), events)
    assert sorted(items[0] for _, items in drawn.values()) == [30, 31, 38]
    assert all(len(items) == 2 for _, items in drawn.values())


def test_heavy_user_over_many_arrow_batches(spark: SparkSession, tmp_path: Path) -> None:
    heavy = [_event(2, n % 33, n) for n in range(500)]
    events = [*(_event(1, n, n) for n in range(20)), *heavy, *(_event(5, n, n) for n in range(20))]
    config = Negatives(per_positive=4, sampler="popularity", alpha=1.0)
    whole = _draw(spark, tmp_path, config, events)
    key = "spark.sql.execution.arrow.maxRecordsPerBatch"
    size = spark.conf.get(key)
    try:
        spark.conf.set(key, "7")
        assert _draw(spark, tmp_path, config, events) == whole
    finally:
        spark.conf.set(key, size or "50000")
    assert sorted({item for (u, _), (_, items) in whole.items() if u == 2 for item in items}) == [
        33, 34, 35, 36,
    ]  # fmt: skip


def test_shortage(spark: SparkSession, tmp_path: Path) -> None:
    events = [_event(8, item, item) for item in range(35)]
    drawn = _draw(spark, tmp_path, Negatives(per_positive=4), events)
    assert all(sorted(items) == [35, 36] for _, items in drawn.values())
    with pytest.raises(Exception, match="user 8 has fewer than 4 items .* of item 0"):
        _draw(spark, tmp_path, Negatives(per_positive=4, shortage="error"), events)


def _items(spark: SparkSession) -> DataFrame:
    """Items n: category n mod 3 and, if even, "even"; price 10 n; the last ones know nothing."""
    rows: list[tuple] = [
        (n, f"t{n}", [f"c{n % 3}", *(["even"] if n % 2 == 0 else [])], {"price": f" {10 * n}.0"})
        for n in range(30)
    ]
    rows += [(30, None, None, {"price": "much"}), (31, "", [], None)]
    columns = "item_id int, title string, categories array<string>, attributes map<string,string>"
    return spark.createDataFrame(rows, columns)


def test_rules(spark: SparkSession, tmp_path: Path) -> None:
    items = _items(spark)
    same = [
        NegativeRule(column="categories"),
        NegativeRule(column="price", edges=[100.0, 200.0]),
    ]
    drawn = _draw(spark, tmp_path, Negatives(per_positive=3, rules=same), items=items)

    def alike(a: int, b: int) -> bool:
        return (a % 3 == b % 3 or a % 2 == b % 2 == 0) and a // 10 == b // 10

    for (user, _), (positive, found) in drawn.items():
        allowed = {n for n in range(30) if alike(n, positive)} - _wanted(user)
        assert len(found) == min(3, len(allowed)) and set(found) <= allowed


def test_an_item_of_two_categories_draws_from_both(spark: SparkSession, tmp_path: Path) -> None:
    config = Negatives(per_positive=1, rules=[NegativeRule(column="categories")])
    events = [_event(user, 4, 0) for user in range(40)]
    found = {
        items[0] for _, items in _draw(spark, tmp_path, config, events, _items(spark)).values()
    }
    assert all(item % 3 == 1 or item % 2 == 0 for item in found) and 4 not in found
    assert any(item % 3 != 1 for item in found) and any(item % 2 == 1 for item in found)


def test_items_without_a_value_get_none(spark: SparkSession, tmp_path: Path) -> None:
    events = [_event(1, item, item) for item in (5, 30, 31, 32)]
    config = Negatives(per_positive=2, rules=[NegativeRule(column="categories")])
    drawn = _draw(spark, tmp_path, config, events, _items(spark))
    assert {item: len(found) for item, found in drawn.values()} == {5: 2, 30: 0, 31: 0, 32: 0}


def test_groups_are_values_and_bands(spark: SparkSession) -> None:
    rules = [NegativeRule(column="title"), NegativeRule(column="price", edges=[10, 250])]
    found = rule_groups(_items(spark), rules).where(F.col("item_id").isin(0, 1, 25, 30)).collect()
    groups = {row["item_id"]: row["group"] for row in found}
    assert groups == {0: '["t0","0"]', 1: '["t1","1"]', 25: '["t25","2"]'}
    priced = rule_groups(_items(spark), rules[1:]).where("item_id >= 30")
    assert priced.isEmpty(), "what is no number is in no band"


@pytest.mark.parametrize(
    "rule, message",
    [
        (NegativeRule(column="colour"), "no item has a value in column 'colour'.* title.* price"),
        (NegativeRule(column="title", edges=[1.0]), "no item has a number in column 'title'"),
    ],
)
def test_a_rule_that_no_item_meets_is_refused(
    spark: SparkSession, rule: NegativeRule, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rule_groups(_items(spark), [rule])
    with pytest.raises(UserError, match="nothing is known of items"):
        rule_groups(None, [rule])
