"""Ingest: what is accepted, what is put aside and why, and that nothing is read twice."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.config import Events
from recs.data.ingest import (
    TooManyRejects,
    count,
    each_new_batch,
    mark_duplicates,
    parse,
    split_accepted,
)
from recs.data.sources import SourceError, open_batch

pytestmark = pytest.mark.planner

NOW = datetime(2025, 6, 1)
COLUMNS = {"user": "u", "item": "i", "timestamp": "t", "event_type": "e", "weight": "w"}
TYPES = {"view": {}, "buy": {"weight": 3}, "dislike": {"polarity": "negative"}}


def events_of(path: Path, **changes: Any) -> Events:
    source = {"path": str(path), "columns": COLUMNS} | changes
    return Events.model_validate({"sources": [source], "types": TYPES})


def ingest(spark: SparkSession, events: Events, known: DataFrame | None = None) -> DataFrame:
    source = events.sources[0]
    batch = open_batch(spark, source, source.paths[0])
    return mark_duplicates(parse(batch, source, events, now=NOW), source, known)


def reasons(marked: DataFrame) -> dict[str, int]:
    return count(0, split_accepted(marked)[1]).rejected


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_lines(*lines: str, name: str = "events.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(("\n".join(lines) + "\n").encode())
        return path

    return write_lines


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",i1,2025-01-01,view,1", "null_user"),
        ("  ,i1,2025-01-01,view,1", "null_user"),
        ("u1,,2025-01-01,view,1", "null_item"),
        ("u1,i1,yesterday,view,1", "bad_time"),
        ("u1,i1,,view,1", "bad_time"),
        ("u1,i1,2025-13-45,view,1", "bad_time"),
        ("u1,i1,2099-01-01,view,1", "future_time"),
        ("u1,i1,1970-01-01,view,1", "time_before_floor"),
        ("u1,i1,2025-01-01,glance,1", "unknown_event_type"),
        ("u1,i1,2025-01-01,view,much", "bad_weight"),
        ("u1,i1,2025-01-01,view,NaN", "weight_not_finite"),
        ("u1,i1,2025-01-01,view,Infinity", "weight_not_finite"),
        ("u1,i1,2025-01-01,view,-1", "negative_weight"),
        ("u1,i1,2025-01-01", "malformed"),
        ("u1,i1,2025-01-01,view,1,more", "malformed"),
    ],
)
def test_bad_rows_are_put_aside_with_reason_and_raw_text(
    spark: SparkSession, write: Callable[..., Path], line: str, reason: str
) -> None:
    marked = ingest(spark, events_of(write("u,i,t,e,w", "a,b,2025-01-01,view,1", line)))
    accepted, quarantine = split_accepted(marked)
    assert [row.user for row in accepted.collect()] == ["a"]
    row = quarantine.collect()[0]
    assert (row.raw, row.reason, row.line) == (line, reason, 2)


def test_values_are_typed_and_weighted(spark: SparkSession, write: Callable[..., Path]) -> None:
    path = write(
        "u,i,t,e,w",
        "a,b,2025-01-01T10:00:00Z,buy,2",
        "a,c,2025-01-02,,",
        "a,d,2025-01-03,dislike,1",
    )
    rows = split_accepted(ingest(spark, events_of(path)))[0].orderBy("timestamp").collect()
    assert [(r.event_type, r.weight, r.positive) for r in rows] == [
        ("buy", 6.0, True),
        ("view", 1.0, True),
        ("dislike", 1.0, False),
    ]
    assert rows[0].timestamp == datetime(2025, 1, 1, 10)


def test_exact_duplicates_keep_the_first(spark: SparkSession, write: Callable[..., Path]) -> None:
    line = "a,b,2025-01-01,view,1"
    marked = ingest(spark, events_of(write("u,i,t,e,w", line, line, "a,b,2025-01-02,view,1")))
    accepted, quarantine = split_accepted(marked)
    assert sorted(row.line for row in accepted.collect()) == [1, 3]
    assert [(row.reason, row.line) for row in quarantine.collect()] == [("duplicate", 2)]


def test_events_known_already_are_duplicates(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    events = events_of(write("u,i,t,e,w", "a,b,2025-01-01,view,1"))
    known = split_accepted(ingest(spark, events))[0]
    assert reasons(ingest(spark, events, known)) == {"duplicate": 1}


def test_repeats_in_data_without_times_are_events(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    columns = {"user": "u", "item": "i", "timestamp": None}
    path = write("1 5", "1 5", "1 7")
    events = events_of(path, separator=" ", fields=["u", "i"], columns=columns)
    rows = split_accepted(ingest(spark, events))[0].orderBy("line").collect()
    assert [(row.item, row.line) for row in rows] == [("5", 0), ("5", 1), ("7", 2)]


def test_lines_are_numbered_exactly_however_files_are_cut(
    spark: SparkSession, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for name, length in (("a.csv", 700), ("b.csv", 3), ("c.csv", 500)):
        (folder / name).write_text("".join(f"{name}{n},i{n}\n" for n in range(length)))
    columns = {"user": "u", "item": "i", "timestamp": None}
    events = events_of(folder, fields=["u", "i"], columns=columns)
    spark.conf.set("spark.sql.files.maxPartitionBytes", "1000")
    try:
        rows = split_accepted(ingest(spark, events))[0].collect()
    finally:
        spark.conf.unset("spark.sql.files.maxPartitionBytes")
    assert len(rows) == 1203
    assert all(row.user == f"{row.source[-5:]}{row.line}" for row in rows)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("seconds", "1735725600"),
        ("milliseconds", "1735725600000"),
        ("iso", "2025-01-01 10:00:00"),
        ("dd/MM/yyyy HH:mm", "01/01/2025 10:00"),
    ],
)
def test_time_formats(
    spark: SparkSession, write: Callable[..., Path], form: str, text: str
) -> None:
    path = write("u,i,t,e,w", f"a,b,{text},view,1", "a,b,nonsense,view,1")
    marked = ingest(spark, events_of(path, timestamp_format=form))
    assert split_accepted(marked)[0].collect()[0].timestamp == datetime(2025, 1, 1, 10)
    assert reasons(marked) == {"bad_time": 1}


def test_groupLens_form_in_gzip_and_latin_1(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "ratings.dat.gz"
    with gzip.open(path, "wb") as file:
        file.write("Zoë::1193::5::978300760\n1::661::3::978302109\n".encode("latin-1"))
    columns = {"user": "u", "item": "i", "timestamp": "t", "weight": "w"}
    events = events_of(
        path,
        separator="::",
        encoding="latin-1",
        fields=["u", "i", "w", "t"],
        timestamp_format="seconds",
        columns=columns,
    )
    rows = split_accepted(ingest(spark, events))[0].orderBy("line").collect()
    assert [(row.user, row.item, row.weight) for row in rows] == [
        ("Zoë", "1193", 5),
        ("1", "661", 3),
    ]


def test_json_lines(spark: SparkSession, write: Callable[..., Path]) -> None:
    good = json.dumps({"u": 1, "i": "x", "t": "2025-01-01", "e": "view", "w": 2.5})
    path = write(good, '{"u": 1, "i"', name="events.jsonl")
    marked = ingest(spark, events_of(path, format="jsonl"))
    row = split_accepted(marked)[0].collect()[0]
    assert (row.user, row.item, row.weight) == ("1", "x", 2.5)
    assert reasons(marked) == {"malformed": 1}


def test_quotes_within_quotes_are_doubled(spark: SparkSession, write: Callable[..., Path]) -> None:
    path = write("u,i,t,e,w", '1,"He said ""hi"", then left",2025-01-01,view,1')
    assert split_accepted(ingest(spark, events_of(path)))[0].collect()[0].item == (
        'He said "hi", then left'
    )


def test_equal_rows_of_a_delta_table_are_one_event(spark: SparkSession, tmp_path: Path) -> None:
    row = ("a", "b", datetime(2025, 1, 1), "view", 1.0)
    df = spark.createDataFrame([row, row], "u string, i string, t timestamp, e string, w double")
    df.repartition(2).write.format("delta").save(str(tmp_path / "t"))
    marked = ingest(spark, events_of(tmp_path / "t", format="delta"))
    assert split_accepted(marked)[0].count() == 1
    assert reasons(marked) == {"duplicate": 1}


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_typed_tables(spark: SparkSession, tmp_path: Path, form: str) -> None:
    df = spark.createDataFrame(
        [
            (7, "x", datetime(2025, 1, 1), "view", 1.0),
            (None, "y", datetime(2025, 1, 1), "view", 1.0),
        ],
        "u bigint, i string, t timestamp, e string, w double",
    )
    df.write.format(form).save(str(tmp_path / "t"))
    marked = ingest(spark, events_of(tmp_path / "t", format=form))
    assert split_accepted(marked)[0].collect()[0].user == "7"
    assert reasons(marked) == {"null_user": 1}


def test_context_columns_are_kept(spark: SparkSession, write: Callable[..., Path]) -> None:
    path = write("u,i,t,e,w,device", "a,b,2025-01-01,view,1,phone")
    events = events_of(path, columns={**COLUMNS, "context": ["device"]})
    assert split_accepted(ingest(spark, events))[0].collect()[0].context == {"device": "phone"}


def test_missing_column_is_named_with_those_there_are(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    with pytest.raises(SourceError, match="no column 'u'; it has user, i"):
        ingest(spark, events_of(write("user,i,t,e,w", "a,b,2025-01-01,view,1")))


def test_files_with_different_headers_are_refused(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    write("u,i,t,e,w", "a,b,2025-01-01,view,1", name="1.csv")
    folder = write("i,u,t,e,w", "a,b,2025-01-01,view,1", name="2.csv").parent
    with pytest.raises(SourceError, match="different headers"):
        ingest(spark, events_of(folder))


def test_too_many_rejects_say_how_many_and_why(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    marked = ingest(spark, events_of(write("u,i,t,e,w", "a,b,2025-01-01,view,1", ",b,x,view,1")))
    accepted, quarantine = split_accepted(marked)
    counts = count(accepted.count(), quarantine)
    counts.require(max_share=0.5)
    with pytest.raises(TooManyRejects, match=r"1 of 2 rows \(50.0%\).*null_user: 1, e.g. .*line 3"):
        counts.require(max_share=0.4)


@pytest.mark.parametrize("form", ["csv", "parquet", "delta"])
def test_stream_reads_each_file_once(spark: SparkSession, tmp_path: Path, form: str) -> None:
    folder, checkpoint = tmp_path / "in", str(tmp_path / "checkpoint")
    events = events_of(folder, format=form)
    source = events.sources[0]
    seen: list[str] = []

    def deliver(user: str) -> None:
        df = spark.createDataFrame(
            [(user, "i", "2025-01-01", "view", "1")],
            "u string, i string, t string, e string, w string",
        )
        df.coalesce(1).write.format(form).mode("append").option("header", "true").save(str(folder))

    def handle(batch: DataFrame) -> None:
        rows = split_accepted(mark_duplicates(parse(batch, source, events, now=NOW), source, None))
        seen.extend(row.user for row in rows[0].collect())

    for user in ("a", "b"):
        deliver(user)
        each_new_batch(spark, source, str(folder), checkpoint, handle)
    each_new_batch(spark, source, str(folder), checkpoint, handle)
    assert seen == ["a", "b"]


def test_error_inside_a_batch_comes_out_as_it_was(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    path = write("u,i,t,e,w", "a,b,2025-01-01,view,1")

    def fail(batch: DataFrame) -> None:
        raise TooManyRejects("mine")

    with pytest.raises(TooManyRejects, match="mine"):
        each_new_batch(spark, events_of(path).sources[0], str(path), str(path.parent / "c"), fail)
