"""What consumers read: committed content of all parts, as a DataFrame, a view, a file of paths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from recs import readers
from recs.lake import Lake, Location
from recs.runs import MissingTable, Run


def counts(lake: Lake, model: str, item: int) -> DataFrame:
    return lake.spark.createDataFrame(
        [(model, item, 1.0)], "model string, item_id int, score float"
    )


def fit(lake: Lake, model: str, run_id: str, item: int) -> None:
    with Run(lake, "fit", run_id, config_hash="c", part=model) as run:
        run.write(f"popularity/{model}", counts(lake, model, item))


def found(rows: DataFrame) -> set[tuple[str, int]]:
    return {(row.model, row.item_id) for row in rows.collect()}


@pytest.fixture
def schema(spark: SparkSession) -> Iterator[str]:
    spark.sql("CREATE SCHEMA IF NOT EXISTS recs_test_readers")
    yield "recs_test_readers"
    spark.sql("DROP SCHEMA recs_test_readers CASCADE")


def test_parts_are_read_together_at_what_is_committed(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(spark, Location(str(tmp_path / "lake")), "serve")
    with pytest.raises(MissingTable, match="no finished run has written popularity"):
        readers.read(lake, "popularity")
    fit(lake, "a", "r1", 1)
    fit(lake, "b", "r1", 2)
    unfinished = Run(lake, "fit", "r2", config_hash="c", part="a").__enter__()
    unfinished.write("popularity/a", counts(lake, "a", 9))
    assert found(readers.read(lake, "popularity")) == {("a", 1), ("b", 2)}
    assert found(readers.read(lake, "popularity/b")) == {("b", 2)}
    readers.write_down(lake)
    told = json.loads((tmp_path / "lake" / "tables-serve.json").read_text())
    assert set(told["tables"]) == {"popularity/a", "popularity/b"}
    part = told["tables"]["popularity/a"]
    rows = spark.read.format("delta").option("versionAsOf", part["version"]).load(part["path"])
    assert found(rows) == {("a", 1)}
    # What is there of a later run stays.
    late = tmp_path / "lake" / "tables-serve.json"
    late.write_text(json.dumps({**told, "sequence": 99}))
    readers.write_down(lake)
    assert json.loads(late.read_text())["sequence"] == 99
    unfinished.__exit__(None, None, None)


def test_a_catalog_has_a_view_of_all_parts(
    spark: SparkSession, tmp_path: Path, schema: str
) -> None:
    lake = Lake(spark, Location(str(tmp_path / "work"), catalog=schema), "serve")
    fit(lake, "a", "r1", 1)
    readers.write_down(lake)
    fit(lake, "b", "r1", 2)
    readers.write_down(lake)
    assert found(spark.table(f"{schema}.serve_popularity")) == {("a", 1), ("b", 2)}
    fit(lake, "a", "r2", 3)  # beside a view, not a table, of all models
    assert found(spark.table(f"{schema}.serve_popularity")) == {("a", 1), ("b", 2)}
    readers.write_down(lake)
    assert found(spark.table(f"{schema}.serve_popularity")) == {("a", 3), ("b", 2)}
