"""Ids grow, never change, and do not depend on partitions or order."""

from __future__ import annotations

from datetime import date

import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.data.vocabulary import new_ids


def found(spark: SparkSession, *users: str, parts: int = 2) -> DataFrame:
    rows = [(user, None) for user in users]
    return spark.createDataFrame(rows, "user string, day date").repartition(parts)


def numbers(df: DataFrame) -> dict[str, int]:
    return {row["user"]: row["user_id"] for row in df.collect()}


def number(df: DataFrame, known: DataFrame | None = None) -> DataFrame:
    return new_ids(df, known, key="user", number="user_id")


USERS = [f"user-{n}" for n in range(50)]


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_numbers_are_dense_and_the_same_for_any_partitioning(
    spark: SparkSession, parts: int
) -> None:
    ids = numbers(number(found(spark, *USERS, *USERS)))
    assert sorted(ids.values()) == list(range(50))
    assert numbers(number(found(spark, *reversed(USERS), parts=parts))) == ids


def test_new_ids_go_on_from_the_known_ones(spark: SparkSession) -> None:
    known = number(found(spark, "a", "b", "c"))
    new = numbers(number(found(spark, "b", "d", "e"), known))
    assert set(new) == {"d", "e"}
    assert sorted(new.values()) == [3, 4]


def test_nothing_new_gives_no_row(spark: SparkSession) -> None:
    known = number(found(spark, "a"))
    assert numbers(number(found(spark, "a"), known)) == {}


def test_days_one_by_one_number_as_all_at_once(spark: SparkSession) -> None:
    schema = "user string, day date"
    days = [
        spark.createDataFrame([(f"user-{n}", date(2025, 1, d)) for n in range(8 * d)], schema)
        for d in (1, 2, 3)
    ]
    known = number(days[0])
    for day in days[1:]:
        known = known.union(number(day, known)).localCheckpoint()
    assert numbers(known) == numbers(number(days[2].union(days[0]).union(days[1])))
