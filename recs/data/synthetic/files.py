"""A generated log as the raw files of a lake, with bad rows among the events.

Spark decides which file a row is of and brings the rows of a file to one task, as numbers; the
task sorts them with NumPy, makes text of them with Arrow, some ten thousand rows at a time, and
writes the file under another name until it is whole. So an attempt that is killed, repeated or
raced by a speculative one never leaves a torn or a second file.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from functools import lru_cache
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recs.arrays.streams import whole_runs
from recs.data.synthetic.values import EVENT_TYPES, SECONDS_A_DAY, Draws, SyntheticLog
from recs.errors import UserError
from recs.storage import filesystem, join, remove_tree

EventFormat = Literal["csv", "parquet"]

#: What a bad row has in place of the event's own values; None: nothing.
_SPOILED: dict[str, dict[str, str | None]] = {
    "empty_user": {"user": ""},
    "empty_item": {"item": ""},
    "unparsable_time": {"timestamp": "yesterday"},
    "future_time": {"timestamp": "2099-01-01T00:00:00Z"},
    "ancient_time": {"timestamp": "1970-01-01T00:00:00Z"},
    "unknown_type": {"event_type": "teleport"},
    "nan_weight": {"weight": "NaN"},
    "infinite_weight": {"weight": "Infinity"},
    "negative_weight": {"weight": "-1.0"},
    "duplicate": {},
    "missing_column": {"timestamp": None, "event_type": None, "weight": None},
    "extra_column": {"extra": "surplus"},
}

#: Kinds of bad rows that :func:`write` strews among the events; Parquet has no ``extra_column``.
BAD_KINDS = tuple(_SPOILED)

_EVENT_FIELDS = ("user", "item", "timestamp", "event_type", "weight")
_EVENT_SCHEMA = pa.schema(
    [(name, pa.float64() if name == "weight" else pa.string()) for name in _EVENT_FIELDS]
)
_USER_FIELDS = ("user", "age", "gender", "country")

_FILE_EVENTS = 1_000_000  # mean events of a file; a day may have some more than another
_FILE_ENTITIES = 100_000  # rows of a users or items file
_TASK_ROWS = 500_000  # small logs have many small files, which few tasks write
_SLICE = 100_000  # rows that are text at a time, and a row group of Parquet
_WRITING = "_writing"  # Spark reads no file under such a name

#: Write the rows of the file of a number, in any order, to a stream, and return how many it has.
Encode = Callable[[int, pa.Table, IO[bytes]], int]


def write(
    log: SyntheticLog, folder: str, *, bad_share: float = 0.0, format: EventFormat = "csv"
) -> dict[str, int]:
    """Write a log as the raw files of a lake, with bad rows among the events.

    ``events/day=YYYY-MM-DD/events-00000.csv`` (with a header; in order of time, user and position;
    a day has as many as its events ask for, each event in one by its hash),
    ``items/items-00000.jsonl`` and ``users/users-00000.csv`` (with a header), the latter two a file
    a hundred thousand rows. Names and bytes depend on the log, ``bad_share`` and ``format``
    only, so that writing again changes nothing for a reader that remembers which files it has read.

    A bad row stands after the event that it was made from, which itself is always written: an
    ingest that drops every bad row, duplicates too, is left with ``log.events``.

    Parameters
    ----------
    log
        What to write.
    folder
        Local path or URI; files of the same name are replaced.
    bad_share
        Bad rows for each event, in [0, 1]; they are of all :data:`BAD_KINDS` alike.
    format
        Of the events: ``csv``, or ``parquet`` with the same columns, weight a double and the others
        strings, so that bad times fit in.

    Returns
    -------
    dict[str, int]
        Rows of events, items and users.

    Raises
    ------
    UserError
        If ``bad_share`` is out of range.
    """
    if not 0 <= bad_share <= 1:
        raise UserError(f"bad_share is {bad_share}; it must lie in [0, 1]")
    items = log.items.select(
        _number("item"),
        F.to_json(F.struct("item", "title", "category", "text", "price")).alias("line"),
    )
    user_line = F.concat_ws(",", *(F.col(name).cast("string") for name in _USER_FIELDS))
    users = log.users.select(_number("user"), user_line.alias("line"))
    num_items, num_users = log.config.num_items, log.config.num_users + 1
    try:
        return {
            "events": _write_events(log, folder, bad_share, format),
            "items": _write_lines(items, num_items, folder, "items/items-%05d.jsonl"),
            "users": _write_lines(users, num_users, folder, "users/users-%05d.csv", _USER_FIELDS),
        }
    finally:
        remove_tree(join(folder, _WRITING))


def _write_events(log: SyntheticLog, folder: str, bad_share: float, format: EventFormat) -> int:
    config, draws = log.config, Draws(log.config.seed)
    parts = -(-config.total_events // (config.num_days * _FILE_EVENTS))
    kinds = len(BAD_KINDS) - (format == "parquet")
    keys = "user", "position"
    bad_kind = F.when(
        draws.uniform("bad", *keys) < bad_share, draws.below(kinds, "bad kind", *keys)
    )
    day = F.floor(F.col("second") / SECONDS_A_DAY)
    rows = log.coded.select(
        (day * parts + draws.below(parts, "file", *keys)).cast("int").alias("file"),
        "user",
        "item",
        "position",
        (F.col("second") % SECONDS_A_DAY).cast("int").alias("second"),
        F.col("type").cast("tinyint").alias("type"),
        F.col("pieces").cast("tinyint").alias("pieces"),
        F.coalesce(bad_kind, F.lit(-1)).cast("tinyint").alias("bad"),
    )
    first_day = config.first_day

    def day_of(file: int) -> date:
        return first_day + timedelta(days=file // parts)

    def name(file: int) -> str:
        return f"events/day={day_of(file)}/events-{file % parts:05d}.{format}"

    def encode(file: int, events: pa.Table, out: IO[bytes]) -> int:
        put = _put_csv if format == "csv" else _put_parquet
        return put(_event_rows(events, day_of(file)), out)

    num_tasks = min(config.num_days * parts, -(-config.total_events // _TASK_ROWS))
    return _write_files(rows, folder, num_tasks, name, encode)


def _write_lines(
    lines: DataFrame,
    num_lines: int,
    folder: str,
    pattern: str,
    header: tuple[str, ...] | None = None,
) -> int:
    """Write ``lines`` (number bigint, line string), in order of their numbers."""

    def encode(file: int, table: pa.Table, out: IO[bytes]) -> int:
        if header:
            out.write((",".join(header) + "\n").encode())
        order = np.argsort(table["number"].to_numpy())
        for start in range(0, order.size, _SLICE):
            _put_lines(_one_array(table["line"].take(order[start : start + _SLICE])), out)
        return table.num_rows

    file = F.floor(F.col("number") / _FILE_ENTITIES).cast("int")
    rows = lines.select(file.alias("file"), "number", "line")
    num_files = -(-num_lines // _FILE_ENTITIES)
    return _write_files(rows, folder, num_files, lambda file: pattern % file, encode)


def _number(name: str) -> Column:
    return F.substring(name, 2, 19).cast("bigint").alias("number")


def _write_files(
    rows: DataFrame, folder: str, num_tasks: int, name: Callable[[int], str], encode: Encode
) -> int:
    """Write every file whole, by the one task that its rows come to; return the rows of all.

    Parameters
    ----------
    rows
        ``file`` int, the number of the file, and what ``encode`` reads.
    folder
        Local path or URI.
    num_tasks
        Tasks; a task writes one file after another and holds one.
    name
        Path of a file in ``folder``.
    encode
        How its content is made.
    """

    def write_task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for file, table in whole_runs(batches, "file"):
            fs, making = filesystem(join(folder, _WRITING, uuid.uuid4().hex))
            _, path = filesystem(join(folder, name(file)))
            for target in (making, path):
                fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            with fs.open(making, "wb") as out:
                count = encode(file, table, out)
            fs.mv(making, path)
            yield pa.RecordBatch.from_pydict({"rows": [count]})

    sorted_rows = rows.repartition(num_tasks, "file").sortWithinPartitions("file")
    written = sorted_rows.mapInArrow(write_task, "rows bigint").agg(F.sum("rows")).collect()
    return int(written[0][0])


def _event_rows(events: pa.Table, day: date) -> Iterator[pa.Table]:
    """Yield a file's rows as text, in order, each bad row after the event that it is made from."""
    numbers = {name: events[name].to_numpy() for name in events.column_names}
    order = np.lexsort((numbers["position"], numbers["user"], numbers["second"]))
    times = pa.array([f"{day}{time}" for time in _times_of_day()])
    for start in range(0, order.size, _SLICE):
        rows = {name: values[order[start : start + _SLICE]] for name, values in numbers.items()}
        good = _as_text(rows, times)
        (places,) = np.nonzero(rows["bad"] >= 0)
        if places.size:
            bad = _spoil(good.take(places), rows["bad"][places])
            mixed = np.insert(np.arange(len(good)), places + 1, len(good) + np.arange(places.size))
            good = pa.concat_tables([good, bad]).take(mixed)
        yield good.combine_chunks()


def _as_text(rows: dict[str, np.ndarray], times: pa.Array) -> pa.Table:
    return pa.table(
        {
            "user": _names("u", rows["user"]),
            "item": _names("i", rows["item"]),
            "timestamp": times.take(pa.array(rows["second"])),
            "event_type": pa.array(EVENT_TYPES).take(pa.array(rows["type"])),
            "weight": pa.array(["0.0", "1.0", "2.0", "3.0"]).take(pa.array(rows["pieces"])),
            "extra": pa.nulls(rows["user"].size, pa.string()),
        }
    )


def _spoil(rows: pa.Table, kinds: np.ndarray) -> pa.Table:
    for kind, changes in enumerate(_SPOILED.values()):
        chosen = pa.array(kinds == kind)
        for field, value in changes.items():
            spoiled = pc.if_else(chosen, pa.scalar(value, pa.string()), rows[field])
            rows = rows.set_column(rows.column_names.index(field), field, spoiled)
    return rows


def _names(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pc.cast(pa.array(numbers), pa.string()), "")


@lru_cache(maxsize=1)
def _times_of_day() -> list[str]:
    return [
        f"T{hour:02d}:{minute:02d}:{second:02d}Z"
        for hour in range(24)
        for minute in range(60)
        for second in range(60)
    ]


def _put_csv(slices: Iterable[pa.Table], out: IO[bytes]) -> int:
    """Write event rows as lines; no value of a log needs quoting."""
    out.write((",".join(_EVENT_FIELDS) + "\n").encode())
    count = 0
    for rows in slices:
        columns = (_one_array(column) for column in rows.columns)
        _put_lines(pc.binary_join_element_wise(*columns, ",", null_handling="skip"), out)
        count += len(rows)
    return count


def _put_parquet(slices: Iterable[pa.Table], out: IO[bytes]) -> int:
    count = 0
    with pq.ParquetWriter(out, _EVENT_SCHEMA) as writer:
        for rows in slices:
            writer.write_table(rows.select(_EVENT_FIELDS).cast(_EVENT_SCHEMA))
            count += len(rows)
    return count


def _put_lines(lines: pa.Array, out: IO[bytes]) -> None:
    whole = pa.ListArray.from_arrays(pa.array([0, len(lines)], pa.int32()), lines)
    out.write(pc.binary_join(whole, "\n")[0].as_buffer())
    out.write(b"\n")


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
