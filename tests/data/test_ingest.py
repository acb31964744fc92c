"""Ingest: what is accepted, what is put aside and why, and that nothing is read twice."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from recs.config import Events, EventSource
from recs.data import ingest
from recs.data.files import (
    Delivered,
    SourceError,
    ledger_rows,
    new_deliveries,
    order_of_sources,
)
from recs.data.ingest import REASONS, TooManyRejects, duplicates, parse, told_apart
from recs.data.sources import RAW, REASON, micros_of, read_rows
from recs.schema import TABLES
from recs.session import settings

pytestmark = pytest.mark.planner

NOW = datetime(2025, 6, 1)
COLUMNS = {"user": "u", "item": "i", "timestamp": "t", "event_type": "e", "weight": "w"}
TYPES = {"view": {}, "buy": {"weight": 3}, "dislike": {"polarity": "negative"}}


@pytest.fixture(autouse=True, scope="module")
def _as_ingest_reads(spark: SparkSession) -> Iterator[None]:
    with settings(spark, {"spark.sql.legacy.parquet.nanosAsLong": "true"}):
        yield


def events_of(path: Path, **changes: Any) -> Events:
    source = {"path": str(path), "columns": COLUMNS} | changes
    return Events.model_validate({"sources": [source], "types": TYPES})


def read(spark: SparkSession, events: Events, first: int = 0) -> DataFrame:
    """Return the parsed rows of all that the first source delivers."""
    source = events.sources[0]
    new = new_deliveries(spark, source, source.paths[0], None, first)
    names = source.columns
    rows = read_rows(
        spark,
        source,
        new,
        ingest.columns_read(source),
        work="unused",
        nested=names.context,
        numbers=[names.weight] if names.weight else [],
        dates=[names.timestamp] if names.timestamp and not source.has_unit else [],
    )
    return parse(rows, source, events, now=NOW)


def accepted(parsed: DataFrame) -> list[Row]:
    return parsed.where(f"{REASON} IS NULL").orderBy("source", "line").collect()


def reasons(parsed: DataFrame) -> dict[str, int]:
    rejected = parsed.where(f"{REASON} IS NOT NULL").groupBy(REASON).count()
    return {row[REASON]: row["count"] for row in rejected.collect()}


def kept(parsed: DataFrame, earlier: DataFrame | None = None) -> tuple[list[Row], list[Row]]:
    """Return the events without repeats, and these."""
    good = parsed.where(f"{REASON} IS NULL")
    repeated = duplicates(good, earlier, has_times=good.where("timestamp IS NULL").isEmpty())
    alone = good.join(repeated, "event_id", "left_anti")
    shared = told_apart(good, repeated)
    once = alone.unionByName(shared.where("NOT repeats").drop("repeats"))
    again = shared.where("repeats").drop("repeats")
    return once.orderBy("source", "line").collect(), again.orderBy("source", "line").collect()


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
        ("u1,i1,12:30,view,1", "bad_time"),
        ("u1,i1,T12:30:00,view,1", "bad_time"),
        ("u1,i1,2025,view,1", "bad_time"),
        ("u1,i1,2025-01,view,1", "bad_time"),
        ("u1,i1,2099-01-01,view,1", "future_time"),
        ("u1,i1,1970-01-01,view,1", "time_before_floor"),
        ("u1,i1,2025-01-01,glance,1", "unknown_event_type"),
        ("u1,i1,2025-01-01,view,much", "bad_weight"),
        ("u1,i1,2025-01-01,view,NaN", "weight_not_finite"),
        ("u1,i1,2025-01-01,view,Infinity", "weight_not_finite"),
        ("u1,i1,2025-01-01,view,-1", "negative_weight"),
        ("u1,i1,2025-01-01,view,1e308", "weight_too_large"),
        ("u1,i1,2025-01-01", "malformed"),
        ("u1,i1,2025-01-01,view,1,more", "malformed"),
    ],
)
def test_bad_rows_are_put_aside_with_reason_and_raw_text(
    spark: SparkSession, write: Callable[..., Path], line: str, reason: str
) -> None:
    parsed = read(spark, events_of(write("u,i,t,e,w", "a,b,2025-01-01,view,1", line)))
    assert [row.user for row in accepted(parsed)] == ["a"]
    [row] = parsed.where(f"{REASON} IS NOT NULL").collect()
    assert (row[RAW], row[REASON], row.line) == (line, reason, 2)


def test_each_constraint_of_events_has_its_reason() -> None:
    """A row that broke one would end its delivery for ever."""
    table = TABLES["events"]
    made_here = {"event_id", "source", "line", "run_id", "known_split"}
    constraints = {column.name for column in table.columns if not column.nullable}
    constraints |= set(table.checks)
    assert constraints - made_here == set(filter(None, REASONS.values()))


def test_what_was_delivered_is_kept(spark: SparkSession, write: Callable[..., Path]) -> None:
    path = write(
        "u,i,t,e,w",
        "a,b,2025-01-01T10:00:00Z,buy,2",
        "a,c,2025-01-02,,",
        "a,d,2025-01-03,dislike,1",
    )
    rows = accepted(read(spark, events_of(path)))
    assert [(r.event_type, r.value) for r in rows] == [("buy", 2), (None, None), ("dislike", 1)]
    assert rows[0].timestamp == datetime(2025, 1, 1, 10)


def test_an_event_is_known_by_what_was_delivered_whatever_the_settings(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    path = write("u,i,t,e,w,x,y", "a,b,2025-01-01,buy,2,1,2", "a,c,2025-01-02,,,3,4")
    events = events_of(path)
    source = {"path": str(path), "columns": {**COLUMNS, "context": ["y", "x"]}}
    types = {**TYPES, "buy": {"weight": 5}}
    changed = Events.model_validate({"sources": [source], "types": types, "default_type": "buy"})
    ids = [[row.event_id for row in accepted(read(spark, each))] for each in (events, changed)]
    assert ids[0] == ids[1] and len(set(ids[0])) == 2


@pytest.mark.parametrize("column", range(5))
def test_events_that_differ_in_anything_are_two(
    spark: SparkSession, write: Callable[..., Path], column: int
) -> None:
    fields, others = ["a", "b", "2025-01-01", "", ""], ["c", "c", "2025-01-02", "view", "1"]
    other = [others[n] if n == column else field for n, field in enumerate(fields)]
    path = write("u,i,t,e,w", ",".join(fields), ",".join(other))
    assert len({row.event_id for row in accepted(read(spark, events_of(path)))}) == 2


def test_exact_duplicates_keep_the_first(spark: SparkSession, write: Callable[..., Path]) -> None:
    line = "a,b,2025-01-01,view,1"
    parsed = read(spark, events_of(write("u,i,t,e,w", line, line, "a,b,2025-01-02,view,1", line)))
    once, again = kept(parsed)
    assert [row.line for row in once] == [1, 3]
    assert [row.line for row in again] == [2, 4]


def test_events_known_already_are_duplicates(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    parsed = read(spark, events_of(write("u,i,t,e,w", "a,b,2025-01-01,view,1")))
    once, again = kept(parsed, parsed)
    assert (len(once), len(again)) == (0, 1)


def test_repeats_in_data_without_times_are_events(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    columns = {"user": "u", "item": "i", "timestamp": None}
    path = write("1 5", "1 5", "1 7")
    events = events_of(path, separator=" ", fields=["u", "i"], columns=columns)
    once, _ = kept(read(spark, events))
    assert [(row.item, row.line) for row in once] == [("5", 0), ("5", 1), ("7", 2)]


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
        rows = accepted(read(spark, events))
    finally:
        spark.conf.unset("spark.sql.files.maxPartitionBytes")
    assert len(rows) == 1203
    assert all(row.user == f"{'abc'[row.source]}.csv{row.line}" for row in rows)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("seconds", "1735725600"),
        ("milliseconds", "1735725600000"),
        ("microseconds", "1735725600000000"),
        ("nanoseconds", "1735725600000000999"),
        ("iso", "2025-01-01 10:00:00"),
        ("dd/MM/yyyy HH:mm", "01/01/2025 10:00"),
    ],
)
def test_time_formats(
    spark: SparkSession, write: Callable[..., Path], form: str, text: str
) -> None:
    path = write("u,i,t,e,w", f"a,b,{text},view,1", "a,b,nonsense,view,1")
    parsed = read(spark, events_of(path, timestamp_format=form))
    assert accepted(parsed)[0].timestamp == datetime(2025, 1, 1, 10)
    assert reasons(parsed) == {"bad_time": 1}


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
    rows = accepted(read(spark, events))
    assert [(row.user, row.item, row.value) for row in rows] == [
        ("Zoë", "1193", 5),
        ("1", "661", 3),
    ]


def test_json_lines(spark: SparkSession, write: Callable[..., Path]) -> None:
    def line(user: object, item: object = "x", weight: object = 2.5) -> str:
        event = {"u": user, "i": item, "t": "2025-01-01", "e": "view", "w": weight}
        return json.dumps(event | {"c.1": {"d": [item]}})

    nan = float("nan")
    path = write(
        line(1),
        '{"u": 1, "i"',
        line(10000001.0, "10.0"),  # whole numbers are integers, texts are texts
        line("[a]", 2.5, 3.0),
        line(["a", "b"]),
        line("a", {"x": 1}),
        line(nan),
        line("a", weight=nan),
        name="events.jsonl",
    )
    events = events_of(path, format="jsonl", columns={**COLUMNS, "context": ["c.1"]})
    parsed = read(spark, events)
    assert [(row.user, row.item, row.value) for row in accepted(parsed)] == [
        ("1", "x", 2.5),
        ("10000001", "10.0", 2.5),
        ("[a]", "2.5", 3.0),
    ]
    assert accepted(parsed)[0].context == {"c.1": '{"d":["x"]}'}
    assert reasons(parsed) == {"malformed": 3, "null_user": 1, "weight_not_finite": 1}


def test_quotes_within_quotes_are_doubled(spark: SparkSession, write: Callable[..., Path]) -> None:
    path = write("u,i,t,e,w", '1,"He said ""hi"", then left",2025-01-01,view,1')
    assert accepted(read(spark, events_of(path)))[0].item == 'He said "hi", then left'


def test_equal_rows_of_a_delta_table_are_one_event(spark: SparkSession, tmp_path: Path) -> None:
    row = ("a", "b", datetime(2025, 1, 1), "view", 1.0)
    rows = [row, row, row, (None, *row[1:])]
    df = spark.createDataFrame(rows, "u string, i string, t timestamp, e string, w double")
    df.repartition(2).write.format("delta").save(str(tmp_path / "t"))
    parsed = read(spark, events_of(tmp_path / "t", format="delta"))
    once, again = kept(parsed)
    assert (len(once), len(again)) == (1, 2)
    # What is put aside is what was rejected, and of equal rows those that repeat one.
    repeats = spark.createDataFrame([(r.source, r.line) for r in again], "source int, line bigint")
    rejected = ingest.rejects(parsed, repeats)
    assert reasons(rejected) == {"duplicate": 2, "null_user": 1}
    few = repeats.limit(1)
    assert reasons(ingest.rejects(parsed, few)) == {"duplicate": 1, "null_user": 1}


def test_one_column_may_play_several_roles(spark: SparkSession, tmp_path: Path) -> None:
    schema = "u string, i string, t timestamp, w double, _event string, _made string"
    rows = [("a", "b", datetime(2025, 1, 1), 5.0, "x", "y")]
    spark.createDataFrame(rows, schema).write.parquet(str(tmp_path / "t"))
    columns = COLUMNS | {"event_type": "w", "context": ["w", "_event", "_made"]}
    source = {"path": str(tmp_path / "t"), "format": "parquet", "columns": columns}
    (event,) = accepted(
        read(spark, Events.model_validate({"sources": [source], "types": {"5": {}, "view": {}}}))
    )
    assert (event.event_type, event.value) == ("5", 5.0)
    assert event.context == {"w": "5", "_event": "x", "_made": "y"}


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
    parsed = read(spark, events_of(tmp_path / "t", format=form))
    assert accepted(parsed)[0].user == "7"
    assert reasons(parsed) == {"null_user": 1}


def test_context_columns_are_kept(spark: SparkSession, write: Callable[..., Path]) -> None:
    path = write("u,i,t,e,w,device", "a,b,2025-01-01,view,1,phone")
    events = events_of(path, columns={**COLUMNS, "context": ["device"]})
    assert accepted(read(spark, events))[0].context == {"device": "phone"}


def test_missing_column_is_named_with_those_there_are(spark: SparkSession, tmp_path: Path) -> None:
    row = spark.createDataFrame([("a", "b")], "user string, i string")
    for form in ("parquet", "delta"):
        row.write.format(form).save(str(tmp_path / form))
        with pytest.raises(SourceError, match="no column 'u'; it has user, i"):
            read(spark, events_of(tmp_path / form, format=form))


def test_first_lines_that_are_no_header_are_not_told(
    spark: SparkSession, write: Callable[..., Path]
) -> None:
    """They are somebody's."""
    path = write("alice@example.com,i1,2025-01-01,view,1", name="1.csv")
    with pytest.raises(SourceError, match="no column 'u': the first line names 5 col") as told:
        read(spark, events_of(path))
    assert "alice" not in str(told.value)
    folder = write("bob@example.com,i1,2025-01-01,view,1", name="2.csv").parent
    with pytest.raises(SourceError, match="different headers: the first lines of") as told:
        read(spark, events_of(folder))
    assert not re.search("alice|bob", str(told.value))


def test_too_many_rejects_say_how_many_and_where_but_name_no_user() -> None:
    counts = ingest.Counts(1, {"null_item": 1}, {"null_item": "file:/a.csv line 3"})
    counts.require(max_share=0.5)
    # A file that has grown brings its bad rows and its good ones, known by now, once more.
    again = ingest.Counts(0, {"null_item": 1, "duplicate": 99}, counts.examples)
    again.require(max_share=0.01)
    with pytest.raises(TooManyRejects, match=r"1 of 2 rows \(50.0%\).*null_item: 1, e.g. file.* 3"):
        counts.require(max_share=0.4)


# -- what people have -----------------------------------------------------------------------------


def test_other_encodings_are_told_by_row_and_by_file(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(b"u,i,t,e,w\ncaf\xe9,i,2025-01-01,view,1\ncaf\xe8,i,2025-01-01,view,1\n")
    parsed = read(spark, events_of(path))
    assert reasons(parsed) == {"bad_encoding": 2}
    assert {row[RAW][:4] for row in parsed.collect()} == {"café", "cafè"}
    named = tmp_path / "names.csv"
    named.write_bytes("usér,i,t,e,w\na,b,2025-01-01,view,1\n".encode("latin-1"))
    columns = {**COLUMNS, "user": "usér"}
    assert len(accepted(read(spark, events_of(named, encoding="latin-1", columns=columns)))) == 1
    assert [row.user for row in accepted(read(spark, events_of(path, encoding="latin-1")))] == [
        "café",
        "cafè",
    ]
    path.write_bytes("u,i,t,e,w\na,i,2025-01-01,view,1\n".encode("utf-16"))
    with pytest.raises(SourceError, match="latin.csv looks like UTF-16"):
        read(spark, events_of(path))


def test_floats_that_stand_for_integers_are_written_as_such(
    spark: SparkSession, tmp_path: Path
) -> None:
    nan = float("nan")
    table = pa.table(
        {
            "u": [1.0, 2.5, nan, 4.0],
            "i": [10000001.0] * 4,
            "t": ["2025-01-01"] * 4,
            "e": ["view"] * 4,
            "w": [1.0, 2.5, 1.0, nan],
        }
    )
    pq.write_table(table, tmp_path / "e.parquet")
    parsed = read(spark, events_of(tmp_path / "e.parquet", format="parquet"))
    rows = accepted(parsed)
    assert [(r.user, r.item, r.value) for r in rows] == [
        ("1", "10000001", 1.0),
        ("2.5", "10000001", 2.5),
    ]
    assert reasons(parsed) == {"null_user": 1, "weight_not_finite": 1}


def parquet(folder: Path, name: str = "e.parquet", **columns: Any) -> Path:
    """Write one event, its columns changed."""
    values = {"u": ["a"], "i": ["b"], "t": ["2025-01-01"], "e": ["view"], "w": [1.0]} | columns
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table({k: v for k, v in values.items() if v is not None}), folder / name)
    return folder


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_times_in_nanoseconds_are_read(
    spark: SparkSession, tmp_path: Path, zone: str | None
) -> None:
    first = 1735725600123456789
    parquet(tmp_path / "in", "1.parquet", t=None, w=[1], n=[1])
    times = pa.array([first, first + 877_000_000], pa.timestamp("ns", zone))
    twice = {"u": ["a"] * 2, "i": ["b"] * 2, "e": ["view"] * 2, "w": [1, 1]}
    folder = parquet(tmp_path / "in", "2.parquet", t=times, unused=times, **twice)
    rows = accepted(read(spark, events_of(folder, format="parquet")))
    micros = [row.timestamp.microsecond for row in rows]
    assert rows[0].timestamp.replace(microsecond=0) == datetime(2025, 1, 1, 10)
    assert micros == [123456, 456]


def test_nanoseconds_are_rounded_down_to_the_digit(spark: SparkSession) -> None:
    numbers = [1735725600000001000, 1735725600456000000, -1, -1000, -(2**63), 2**63 - 1]
    df = spark.createDataFrame([(n,) for n in numbers], "n bigint")
    found = [row[0] for row in df.select(micros_of(F.col("n"))).collect()]
    assert found == [n // 1000 for n in numbers]


def test_numbers_that_may_be_any_time_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    folder = parquet(tmp_path / "in", t=[1735725600])
    with pytest.raises(SourceError, match="column 't' of .* is bigint.*timestamp_format: seconds"):
        read(spark, events_of(folder, format="parquet"))
    read(spark, events_of(folder, format="parquet", timestamp_format="seconds"))


def test_lists_are_no_ids(spark: SparkSession, tmp_path: Path) -> None:
    folder = parquet(tmp_path / "in", i=[["b", "c"]])
    with pytest.raises(SourceError, match="column 'i' of .* is array<string>, where a text or a"):
        read(spark, events_of(folder, format="parquet"))


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_names_with_dots_and_blanks(spark: SparkSession, tmp_path: Path, form: str) -> None:
    values = {"user.id": ["a"], "item id": ["b"], "Event.TS": ["2025-01-01"]}
    df = spark.createDataFrame([tuple(v[0] for v in values.values())], list(values))
    writer = df.write.format(form).option("delta.columnMapping.mode", "name")
    writer.save(str(tmp_path / "t"))
    columns = {"user": "user.id", "item": "item id", "timestamp": "Event.TS"}
    [row] = accepted(read(spark, events_of(tmp_path / "t", format=form, columns=columns)))
    assert (row.user, row.item) == ("a", "b")


def test_folders_named_by_a_column_and_its_value_give_that_column(
    spark: SparkSession, tmp_path: Path
) -> None:
    for day, kind in (("2025-01-01", "view"), ("2025-01-02", "buy")):
        parquet(tmp_path / "in" / f"t={day}" / f"e={kind}", t=None, e=None)
    rows = accepted(read(spark, events_of(tmp_path / "in", format="parquet")))
    assert [(row.timestamp.day, row.event_type) for row in rows] == [(1, "view"), (2, "buy")]


@pytest.mark.parametrize(
    ("form", "lines"), [("csv", "u,i,w\na,b,1\n"), ("jsonl", '{"u": "a", "i": "b", "w": 1}\n')]
)
def test_folders_give_columns_to_text_as_well(
    spark: SparkSession, tmp_path: Path, form: str, lines: str
) -> None:
    for day, kind in (("2025-01-01", "view"), ("2025-01-02", "buy")):
        folder = tmp_path / "in" / f"t={day}" / f"e={kind}"
        folder.mkdir(parents=True)
        (folder / f"x.{form}").write_text(lines)
    rows = accepted(read(spark, events_of(tmp_path / "in", format=form)))
    assert [(row.timestamp.day, row.event_type) for row in rows] == [(1, "view"), (2, "buy")]


def test_a_column_that_only_newer_files_have_is_null_before(
    spark: SparkSession, tmp_path: Path
) -> None:
    parquet(tmp_path / "in", "1.parquet", e=None)
    folder = parquet(tmp_path / "in", "2.parquet", e=["buy"])
    rows = accepted(read(spark, events_of(folder, format="parquet")))
    assert [row.event_type for row in rows] == [None, "buy"]


def test_files_whose_types_differ_are_named(spark: SparkSession, tmp_path: Path) -> None:
    parquet(tmp_path / "in", "1.parquet", other=[1])
    folder = parquet(tmp_path / "in", "2.parquet", other=["x"])
    assert len(accepted(read(spark, events_of(folder, format="parquet")))) == 2
    parquet(folder, "3.parquet", u=[7])
    with pytest.raises(SourceError, match=r"column 'u' is string in .*1.parquet and bigint in .*3"):
        read(spark, events_of(folder, format="parquet"))


@pytest.mark.parametrize("name", ["clicks[1].csv", "a b#1%+é?.csv", "{x,y}*.csv"])
def test_names_that_globs_and_urls_would_take_apart(
    spark: SparkSession, write: Callable[..., Path], name: str
) -> None:
    path = write("u,i,t,e,w", "a,b,2025-01-01,view,1", name=name)
    assert len(accepted(read(spark, events_of(path)))) == 1
    assert len(accepted(read(spark, events_of(path.parent)))) == 1


def test_numbers_in_parquet_files_of_any_name(spark: SparkSession, tmp_path: Path) -> None:
    folder = parquet(tmp_path / "in #1", "a?b.parquet", u=[7])
    assert accepted(read(spark, events_of(folder, format="parquet")))[0].user == "7"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("_clicks.csv", "begins with _ or .: rename it"),
        ("2024-01-01T10:00:00.csv", "holds a colon: rename it"),
        ("clicks.csv.zst", "Spark unpacks .gz and .bz2"),
    ],
)
def test_names_that_spark_does_not_read_are_told(
    spark: SparkSession, write: Callable[..., Path], name: str, message: str
) -> None:
    with pytest.raises(SourceError, match=f"{name}.*{message}"):
        read(spark, events_of(write("u,i,t,e,w", "a,b,2025-01-01,view,1", name=name)))


def test_hidden_files_of_a_folder_are_counted(
    spark: SparkSession, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.csv", "_b.csv", ".c.csv", "_SUCCESS", ".a.csv.crc"):
        path = write("u,i,t,e,w", "a,b,2025-01-01,view,1", name=name)
    assert len(accepted(read(spark, events_of(path.parent)))) == 1
    [record] = [r for r in caplog.records if "begin with _ or . are not read" in r.message]
    assert record.__dict__["files"] == 2


def test_headers(spark: SparkSession, write: Callable[..., Path]) -> None:
    line = "a,b,2025-01-01,view,1,c"
    both = events_of(write("u,i,t,e,w,U", line))
    assert accepted(read(spark, both))[0].user == "a"
    quoted = events_of(write("'u','i','t','e','w'", "'a','b','2025-01-01','view','1'"), quote="'")
    assert accepted(read(spark, quoted))[0].user == "a"
    with pytest.raises(SourceError, match="has 2 columns 'u': name all of them"):
        read(spark, events_of(write("u,i,t,e,w,u", line)))


# -- what is new ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_file_is_new_once_and_again_when_it_has_changed(
    spark: SparkSession, tmp_path: Path, form: str
) -> None:
    source = events_of(tmp_path, format=form).sources[0]
    first, second = tmp_path / "day-9.csv", tmp_path / "day-10.csv"
    first.write_text("a")
    second.write_text("b")
    new = new_deliveries(spark, source, str(tmp_path), None, 5)
    assert [(d.source, Path(d.path).name) for d in new] == [(5, "day-9.csv"), (6, "day-10.csv")]
    known = ledger_rows(spark, new, "events", "hash")
    assert not new_deliveries(spark, source, str(tmp_path), known, 7)
    second.write_text("longer")
    [changed] = new_deliveries(spark, source, str(tmp_path), known, 7)
    assert (changed.source, changed.size) == (7, 6)


def test_of_a_delta_table_added_rows_are_read(spark: SparkSession, tmp_path: Path) -> None:
    path, work = str(tmp_path / "t"), tmp_path / "work"
    source = events_of(tmp_path / "t", format="delta").sources[0]

    def add(user: str) -> None:
        row = (user, "i", "2025-01-01", "view", "1")
        df = spark.createDataFrame([row], "u string, i string, t string, e string, w string")
        df.write.format("delta").mode("append").save(path)

    def users(new: list[Delivered], source: EventSource = source) -> list[str]:
        given = str(work / str(len(list(tmp_path.rglob("*")))))
        rows = read_rows(spark, source, new, ["u"], work=given)
        return sorted(row["u"] for row in rows.collect())

    add("a")
    first = new_deliveries(spark, source, path, None, 0)
    assert users(first) == ["a"]
    known = ledger_rows(spark, first, "events", "hash")
    assert not new_deliveries(spark, source, path, known, 1)
    add("b")
    add("c")
    assert users(new_deliveries(spark, source, path, known, 1)) == ["b", "c"]
    spark.sql(f"DELETE FROM delta.`{path}` WHERE u = 'a'")
    add("d")
    new = new_deliveries(spark, source, path, known, 1)
    with pytest.raises(SourceError, match="changed or had rows deleted after version 0.*skip"):
        users(new)
    skipping = source.model_copy(update={"changes": "skip"})
    assert users(new, skipping) == ["b", "c", "d"]
    known = known.union(ledger_rows(spark, new, "events", "hash"))
    shutil.rmtree(path)
    for user in "efghi"[: new[0].version]:
        add(user)
    add("z")  # another table, at the version that was read last
    assert "z" in users(new_deliveries(spark, source, path, known, 2))


def test_order_of_sources_depends_on_paths_alone(spark: SparkSession) -> None:
    deliveries = [Delivered(0, "day-10"), Delivered(1, "day-9"), Delivered(2, "day-10")]
    rows = order_of_sources(ledger_rows(spark, deliveries, "events", "hash")).collect()
    assert {row["source"]: row["source_order"] for row in rows} == {0: 1, 1: 0, 2: 1}
