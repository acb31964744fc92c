"""Items, users and candidate lists: each column by its newest delivery, nothing made up or lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.config import CandidateSource, ItemSource, UserSource
from recs.data import entities
from recs.data.files import SourceError, new_deliveries
from recs.data.sources import REASON, read_lines, read_rows


def items(spark: SparkSession, path: Path, **source: Any) -> DataFrame:
    """Return the items of a source, read whole."""
    settings = ItemSource(path=str(path), **{"item": "item", **source})
    rows = rows_of(spark, settings, entities.item_columns(settings), path)
    return entities.items(entities.with_reason(rows, "item", settings.item), settings)


def rows_of(
    spark: SparkSession, source: ItemSource | UserSource, columns: Sequence[str], path: Path
) -> DataFrame:
    new = new_deliveries(spark, source, str(path), None, 0)
    return read_rows(spark, source, new, columns, work="unused", nested=columns[1:])


def by_item(df: DataFrame) -> dict[str, dict[str, Any]]:
    return {row["item"]: {k: row[k] for k in df.columns if k != "item"} for row in df.collect()}


GENRES = [["Drama", "War, cold"], ["Comedy"], [], None]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_lists_are_taken_as_lists(spark: SparkSession, tmp_path: Path, form: str) -> None:
    path, names = tmp_path / "items", ["i0", "i1", "i2", "i3"]
    if form == "parquet":
        pq.write_table(pa.table({"item": names, "genres": GENRES}), path)
    else:
        rows = zip(names, GENRES, strict=True)
        path.write_text("".join(json.dumps({"item": i, "genres": g}) + "\n" for i, g in rows))
    found = by_item(items(spark, path, format=form, categories="genres"))
    assert [found[name]["categories"] for name in names] == GENRES


def test_text_is_cut_at_the_separator(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item,genres\ni0,Drama| War|\ni1,\n")
    found = by_item(items(spark, path, categories="genres"))
    assert found["i0"]["categories"] == ["Drama", "War"] and found["i1"]["categories"] is None


def test_each_column_is_of_the_newest_that_says_anything(
    spark: SparkSession, tmp_path: Path
) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    (folder / "items-10.csv").write_text("item,title,year,price\ni0,,1999,\n")
    (folder / "items-9.csv").write_text("item,title,year,price\ni0,Old,1998,3\ni1,One,,\n")
    found = items(spark, folder, title="title", attributes=["year", "price"])
    assert by_item(found)["i0"] == {
        "title": "Old",
        "categories": None,
        "text": None,
        "attributes": {"year": "1999", "price": "3"},
    }
    prices = tmp_path / "prices.csv"
    prices.write_text("item,price,colour\ni1,7,red\ni2,8,\n")
    merged = entities.merged(found, items(spark, prices, attributes=["price", "colour"]), "item")
    both = by_item(merged)
    assert set(both) == {"i0", "i1", "i2"}
    assert both["i0"]["title"] == "Old" and both["i0"]["attributes"]["price"] == "3"
    assert both["i1"]["title"] == "One"
    assert both["i1"]["attributes"] == {"price": "7", "colour": "red"}


def test_rows_without_an_id_are_rejected_and_a_file_of_such_alone_refused(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = tmp_path / "users.csv"
    path.write_text("user,age\nu0,7\n ,8\nu1\n")
    source = UserSource(path=str(path), user="user", attributes=["age"])
    columns = entities.user_columns(source)
    judged = entities.with_reason(rows_of(spark, source, columns, path), "user", "user")
    files = spark.createDataFrame([(0, "users.csv")], "source int, path string")
    assert entities.require_some(judged, files, "user with an id") == {
        "null_user": 1,
        "malformed": 1,
    }
    assert [row["user"] for row in entities.users(judged, source).collect()] == ["u0"]
    with pytest.raises(SourceError, match="users.csv holds no user with an id: .* null_user"):
        entities.require_some(judged.where(f"{REASON} = 'null_user'"), files, "user with an id")


def test_candidate_lists(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "lists.tsv"
    path.write_text("(1,5)\t7\t8\t\n1\t2\t3\n")
    source = CandidateSource(path=str(path))
    new = new_deliveries(spark, source, str(path), None, 0)
    lines = entities.with_form(read_lines(spark, source, new))
    assert [tuple(row) for row in entities.candidate_lists(lines).collect()] == [
        ("1", "5", ["7", "8"])
    ]
    [rejected] = lines.where(f"{REASON} IS NOT NULL").collect()
    assert (rejected[REASON], rejected["_line"]) == ("malformed", 1)
