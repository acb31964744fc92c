"""Delivered rows → accepted ``events``, and a ``quarantine`` of rejected ones with reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from recs.config import Events, EventSource
from recs.data.files import column_of
from recs.data.sources import (
    BAD_ENCODING,
    LINE,
    MALFORMED,
    RAW,
    REASON,
    SOURCE,
    micros_of,
    moment_of,
    once,
)
from recs.errors import UserError
from recs.schema import MAX_VALUE

DUPLICATE = "duplicate"

#: Reasons why a row is no event, in the order in which they are looked for, each with the
#: constraint of table ``events`` that such a row would break, where there is one.
REASONS: dict[str, str | None] = {
    BAD_ENCODING: None,
    MALFORMED: None,
    "null_user": "user",
    "null_item": "item",
    "bad_time": None,
    "time_before_floor": None,
    "future_time": None,
    "bad_position": None,
    "unknown_event_type": None,
    "bad_weight": None,
    "weight_not_finite": "value_in_range",
    "negative_weight": "value_in_range",
    "weight_too_large": "value_in_range",
}

#: Duplicates that are kept in quarantine, of each source and run; all are counted.
KEPT_DUPLICATES = 1000


class TooManyRejects(UserError):
    """More of the delivered rows were rejected than the configuration allows."""


@dataclass(frozen=True)
class Counts:
    """Rows of a delivery by what became of them; of each reason an example's place."""

    accepted: int
    rejected: dict[str, int]
    examples: dict[str, str]

    def require(self, max_share: float) -> None:
        """Refuse a delivery with too many bad rows.

        A second delivery of the same events is no bad data: duplicates count as good rows, for the
        bad ones among them are there again as well.

        Raises
        ------
        TooManyRejects
            With the number, reasons and the place of one example a reason.
        """
        bad = sum(n for reason, n in self.rejected.items() if reason != DUPLICATE)
        total = self.accepted + sum(self.rejected.values())
        if total and bad / total > max_share:
            reasons = "; ".join(
                f"{reason}: {n:,}, e.g. {self.examples[reason]}"
                for reason, n in self.rejected.items()
                if reason != DUPLICATE
            )
            encoding = ""
            if BAD_ENCODING in self.rejected:
                encoding = ", say encoding: latin-1 or save the files as UTF-8"
            raise TooManyRejects(
                f"{bad:,} of {total:,} rows ({bad / total:.1%}) are rejected, more than "
                f"events.max_reject_share = {max_share:.1%} ({reasons}); mend the source's columns "
                f"or formats in the config{encoding}, or raise the share"
            )


def columns_read(source: EventSource) -> list[str]:
    """Return the columns of the data that an event source reads, each once."""
    roles = _roles(source)
    return list(dict.fromkeys([*roles.values(), *source.columns.context]))


def _roles(source: EventSource) -> dict[str, str]:
    names = source.columns
    roles = ("user", "item", "timestamp", "position", "event_type", "weight")
    return {role: name for role in roles if (name := getattr(names, role))}


def parse(rows: DataFrame, source: EventSource, events: Events, *, now: datetime) -> DataFrame:
    """Return typed events with the reason why a row is not acceptable (null: it is).

    A row gets the first reason of :data:`REASONS` that holds.

    Parameters
    ----------
    rows
        Of :func:`recs.data.sources.read_rows`, with the columns of :func:`columns_read`.
    source
        The event source.
    events
        What is accepted.
    now
        The run's time, UTC; events later than it by more than the allowed skew are rejected.

    Returns
    -------
    DataFrame
        Columns of table ``events`` but ``run_id``, ``_raw`` and ``_reason``.
    """
    names, given = source.columns, _roles(source)

    def text(role: str) -> Column:
        if role not in given:
            return F.lit(None).cast("string")
        return F.nullif(F.trim(column_of(given[role])), F.lit(""))

    time = F.lit(None).cast("timestamp")
    if "timestamp" in given:
        typed = isinstance(rows.schema[given["timestamp"]].dataType, T.TimestampType)
        time = column_of(given["timestamp"]) if typed else _time(text("timestamp"), source)
    event = {
        "user": text("user"),
        "item": text("item"),
        "timestamp": time,
        "position": text("position").try_cast("bigint"),
        "event_type": text("event_type"),
        "value": text("weight").try_cast("double"),
    }
    no_value = text("weight").isNotNull() & event["value"].isNull()
    fields = [column.alias(name) for name, column in event.items()]
    # Without the data's own columns, whose names may be any.
    rows = rows.select(
        F.struct(*fields, no_value.alias("no_value")).alias("_parsed"),
        _context(names.context).alias("context"),
        *(SOURCE, LINE, RAW, REASON),
    )
    rows = once(rows, "_event", F.col("_parsed"))
    parsed = {name: F.col("_event").getField(name) for name in event}
    kind = F.coalesce(parsed["event_type"], F.lit(events.default_type))
    value = parsed["value"]
    holds = {
        BAD_ENCODING: F.col(REASON) == BAD_ENCODING,
        MALFORMED: F.col(REASON) == MALFORMED,
        "null_user": parsed["user"].isNull(),
        "null_item": parsed["item"].isNull(),
        "unknown_event_type": ~kind.isin(list(events.types)),
        "bad_weight": F.col("_event").getField("no_value"),
        "weight_not_finite": F.isnan(value) | (F.abs(value) == float("inf")),
        "negative_weight": value < 0,
        "weight_too_large": value > MAX_VALUE,
    }
    if "timestamp" in given:
        time, latest = parsed["timestamp"], now + timedelta(hours=events.allowed_skew_hours)
        holds |= {
            "bad_time": time.isNull(),
            "time_before_floor": time < moment_of(events.floor),
            "future_time": time > moment_of(latest),
        }
    if "position" in given:
        holds["bad_position"] = parsed["position"].isNull()
    reason = F.coalesce(*[F.when(holds[name], F.lit(name)) for name in REASONS if name in holds])
    by_line = not ("timestamp" in given or "position" in given)
    return rows.select(
        _event_id(parsed, by_line=by_line).alias("event_id"),
        *[column.alias(name) for name, column in parsed.items()],
        "context",
        F.lit(source.held_out).cast("string").alias("held_out"),
        F.col(SOURCE).alias("source"),
        F.col(LINE).alias("line"),
        RAW,
        reason.alias(REASON),
    )


def _context(names: Sequence[str]) -> Column:
    if not names:
        return F.lit(None).cast("map<string,string>")
    pairs = [(F.lit(name), column_of(name).cast("string")) for name in names]
    return F.create_map(*[part for pair in pairs for part in pair])


def _event_id(event: Mapping[str, Column], *, by_line: bool) -> Column:
    """Return the 64-bit hash that an event is known by.

    Two events are the same if user, item, time, position, type and value are, as delivered:
    settings may change, and context columns come and go. Data with neither times nor positions can
    hold the same item twice in a row, so that there the line counts too. That two of n other events
    share a hash has odds of n² / 2⁶⁵, and only those of the same days are ever compared.
    """
    # The hash passes over nulls; so that which values are null is told, no value stands for each.
    values = [
        event["user"],
        event["item"],
        F.coalesce(F.unix_micros(event["timestamp"]), F.lit(-(2**63))),
        F.coalesce(event["position"], F.lit(-(2**63))),
        F.coalesce(event["event_type"], F.lit("")),
        F.coalesce(event["value"], F.lit(-1.0)),
    ]
    if by_line:
        values.append(F.col(LINE))
    return F.xxhash64(*values)


def duplicates(added: DataFrame, earlier: DataFrame | None, *, has_times: bool) -> DataFrame:
    """Return the ids that more than one event has, ``event_id``, and whether one was there before.

    What is shuffled is one number an event. Of the earlier events those of the same days are read,
    where the data has times.

    Parameters
    ----------
    added
        Events that were just written.
    earlier
        Table ``events`` before; None for nothing.

    Returns
    -------
    DataFrame
        ``event_id`` bigint, ``known`` boolean.
    """
    ids = added.select("event_id", F.lit(False).alias("known"))
    if earlier is not None:
        same_days = earlier.where(_in_days_of(added)) if has_times else earlier
        ids = ids.union(same_days.select("event_id", F.lit(True)))
    counted = ids.groupBy("event_id").agg(F.count("*").alias("n"), F.max("known").alias("known"))
    return counted.where("n > 1").drop("n")


def told_apart(events: DataFrame, repeated: DataFrame) -> DataFrame:
    """Return the events whose ids are repeated, with ``repeats``: whether one repeats another.

    The first row by (source, line) does not, if the event was not there before; of equal rows of a
    Delta table, which have one line, any one is the first.

    Parameters
    ----------
    events
        Rows of table ``events``.
    repeated
        Of :func:`duplicates`.
    """
    place = F.row_number().over(Window.partitionBy("event_id").orderBy("source", "line"))
    shared = events.join(repeated, "event_id").withColumn("_place", place)
    return shared.select(*events.columns, (F.col("known") | (F.col("_place") > 1)).alias("repeats"))


def rejects(parsed: DataFrame, repeats: DataFrame) -> DataFrame:
    """Return the rows of :func:`parse` that were rejected, and those of repeats as ``duplicate``.

    ``repeats`` has ``source`` and ``line`` of a few rows. Equal rows of a Delta table have one
    line: as many of them are returned as it has rows of that line.
    """
    places = repeats.groupBy("source", "line").agg(F.count("*").alias("_repeats"))
    marked = parsed.join(F.broadcast(places), ["source", "line"], "left")
    marked = marked.where(F.col(REASON).isNotNull() | F.col("_repeats").isNotNull())
    place = F.row_number().over(Window.partitionBy("source", "line").orderBy(RAW))
    marked = marked.withColumn("_place", place)
    marked = marked.where(F.col(REASON).isNotNull() | (F.col("_place") <= F.col("_repeats")))
    return marked.withColumn(REASON, F.coalesce(REASON, F.lit(DUPLICATE)))


def quarantined(rejected: DataFrame, files: DataFrame) -> DataFrame:
    """Return rejected rows (_raw, _reason, source, line) as rows of ``quarantine``, but ``run_id``.

    ``files`` has ``source`` and ``path``.
    """
    named = rejected.join(F.broadcast(files.select("source", "path")), "source")
    return named.select(
        F.col(RAW).alias("raw"),
        F.col(REASON).alias("reason"),
        F.col("path").alias("source"),
        "line",
    )


def count(quarantine: DataFrame) -> tuple[dict[str, int], dict[str, str]]:
    """Return the rows of a quarantine by reason, and where the first of each is."""
    found = (
        quarantine.groupBy("reason")
        .agg(F.count("*").alias("rows"), F.min(F.struct("source", "line")).alias("first"))
        .orderBy("reason")
        .collect()
    )
    rows = {row["reason"]: row["rows"] for row in found}
    return rows, {row["reason"]: _place(**row["first"].asDict()) for row in found}


def _place(source: str, line: int) -> str:
    # The place of a row of a Delta table is a hash.
    return f"{source} line {line + 1}" if line < 2**40 else source


def _in_days_of(events: DataFrame) -> Column:
    """Return the condition that a timestamp is of the events' days, as a few ranges of days.

    Ranges of the column itself let Delta skip files by their statistics.
    """
    found = events.select(F.to_date("timestamp").alias("day")).distinct().orderBy("day").collect()
    days = [row["day"] for row in found]
    if not days:
        return F.lit(False)
    gaps = sorted(range(1, len(days)), key=lambda n: days[n - 1] - days[n])[: _MAX_RANGES - 1]
    starts = [0, *sorted(n for n in gaps if days[n] - days[n - 1] > timedelta(days=1))]
    ends = [*(n - 1 for n in starts[1:]), len(days) - 1]
    ranges = [
        (F.col("timestamp") >= F.lit(days[start]).cast("timestamp"))
        & (F.col("timestamp") < F.lit(days[end] + timedelta(days=1)).cast("timestamp"))
        for start, end in zip(starts, ends, strict=True)
    ]
    return reduce(Column.__or__, ranges)


_MAX_RANGES = 32

#: Years 1 to 9999 in seconds since 1970: a number outside is no time in its unit.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799


def _time(text: Column, source: EventSource) -> Column:
    form = source.timestamp_format
    if form in ("seconds", "milliseconds"):
        seconds = text.try_cast("double") / (1000.0 if form == "milliseconds" else 1.0)
        plausible = seconds.between(float(_FIRST_SECOND), float(_LAST_SECOND))
        return F.timestamp_seconds(F.when(plausible, seconds))
    if form in ("microseconds", "nanoseconds"):
        # Whole numbers: a double does not hold so many digits.
        number = text.try_cast("bigint")
        micros = number if form == "microseconds" else micros_of(number)
        plausible = micros.between(_FIRST_SECOND * 10**6, _LAST_SECOND * 10**6)
        return F.timestamp_micros(F.when(plausible, micros))
    if form == "iso":
        # To a time of day alone Spark adds today's date, to a year the first of January.
        dated = (F.substring(text, 5, 1) == "-") & (F.length(text) >= 8)
        return F.try_to_timestamp(F.when(dated, text))
    return F.try_to_timestamp(text, F.lit(form))
