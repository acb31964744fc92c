"""Raw events → accepted ``events`` and a ``quarantine`` of rejected rows with their reasons.

New files (or table versions) are found by Structured Streaming with ``availableNow``; its
checkpoint is the ledger of what was read. The checkpoint belongs to the run: a run starts from a
copy of the last finished run's, so that it is committed, or forgotten, with the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.config import Events, EventSource
from recs.data.sources import (
    LINE,
    MALFORMED,
    RAW,
    SOURCE,
    column_of,
    is_text,
    moment_of,
    once,
    open_stream,
    rows,
)
from recs.errors import UserError
from recs.storage import join

REASON = "_reason"
DUPLICATE = "duplicate"


class TooManyRejects(UserError):
    """More of the delivered rows were rejected than the configuration allows."""


@dataclass(frozen=True)
class Counts:
    """Rows of a delivery by what became of them."""

    accepted: int
    rejected: dict[str, int]
    examples: dict[str, str]

    def __add__(self, other: Counts) -> Counts:
        reasons = sorted({*self.rejected, *other.rejected})
        return Counts(
            self.accepted + other.accepted,
            {r: self.rejected.get(r, 0) + other.rejected.get(r, 0) for r in reasons},
            {**other.examples, **self.examples},
        )

    def require(self, max_share: float) -> None:
        """Refuse a delivery with too many bad rows.

        A second delivery of the same events is not bad data: duplicates do not count.

        Raises
        ------
        TooManyRejects
            With the number, reasons and one example a reason.
        """
        bad = sum(n for reason, n in self.rejected.items() if reason != DUPLICATE)
        total = self.accepted + bad
        if total and bad / total > max_share:
            reasons = "; ".join(
                f"{reason}: {n:,}, e.g. {self.examples[reason]}"
                for reason, n in self.rejected.items()
                if reason != DUPLICATE
            )
            raise TooManyRejects(
                f"{bad:,} of {total:,} rows ({bad / total:.1%}) are rejected, more than "
                f"events.max_reject_share = {max_share:.1%} ({reasons}); mend the source's columns "
                "or formats in the config, or raise the share"
            )


def parse(batch: DataFrame, source: EventSource, events: Events, *, now: datetime) -> DataFrame:
    """Return typed events with the reason why a row is not acceptable (null: it is).

    Reasons, of which a row gets the first that holds: ``malformed``, ``null_user``, ``null_item``,
    ``bad_time``, ``time_before_floor``, ``future_time``, ``bad_position``, ``unknown_event_type``,
    ``bad_weight``, ``weight_not_finite``, ``negative_weight``.

    An empty event type is the default type, an empty weight is 1.

    Parameters
    ----------
    batch
        Rows of :func:`recs.data.sources.rows`, opened but not yet parsed.
    source
        The event source.
    events
        What is accepted.
    now
        The run's time, UTC; events later than it by more than the allowed skew are rejected.

    Returns
    -------
    DataFrame
        Columns of table ``events`` but ``run_id``, ``_raw`` (null for acceptable rows of formats
        other than text) and ``_reason``.
    """
    names = source.columns
    roles = ("user", "item", "timestamp", "position", "event_type", "weight")
    given = {role: name for role in roles if (name := getattr(names, role))}
    df = rows(batch, source, list(dict.fromkeys([*given.values(), *names.context])))
    trimmed = {role: F.trim(column_of(name)) for role, name in given.items()}
    df = _once(df, "_text", {role: F.when(text != "", text) for role, text in trimmed.items()})

    def text(role: str) -> Column:
        return F.col("_text").getField(role) if role in given else F.lit(None).cast("string")

    kind = F.coalesce(text("event_type"), F.lit(events.default_type))
    value = F.coalesce(text("weight").try_cast("double"), F.when(text("weight").isNull(), 1.0))
    type_weight, positive = _by_type(kind, events)
    context = (
        F.create_map(*[part for name in names.context for part in (F.lit(name), column_of(name))])
        if names.context
        else F.lit(None).cast("map<string,string>")
    )
    typed = {
        "timestamp": _time(text("timestamp"), source.timestamp_format),
        "position": text("position").try_cast("bigint"),
        "event_type": kind,
        "value": value,
        "type_weight": type_weight,
        "positive": positive,
        "context": context,
    }
    df = _once(df, "_typed", typed)
    event = {name: F.col("_typed").getField(name) for name in typed}
    time, value, type_weight = event["timestamp"], event.pop("value"), event.pop("type_weight")
    latest = now + timedelta(hours=events.allowed_skew_hours)
    checks: list[tuple[str, Column]] = [
        ("malformed", F.col(MALFORMED)),
        ("null_user", text("user").isNull()),
        ("null_item", text("item").isNull()),
    ]
    if names.timestamp:
        checks += [
            ("bad_time", time.isNull()),
            ("time_before_floor", time < moment_of(events.floor)),
            ("future_time", time > moment_of(latest)),
        ]
    if names.position:
        checks.append(("bad_position", event["position"].isNull()))
    checks += [
        ("unknown_event_type", type_weight.isNull()),
        ("bad_weight", value.isNull()),
        ("weight_not_finite", F.isnan(value) | (F.abs(value) == float("inf"))),
        ("negative_weight", value < 0),
    ]
    reason = F.coalesce(*[F.when(condition, F.lit(name)) for name, condition in checks])
    # Text is there anyhow; of other forms, only rejected rows are worth writing as text.
    raw = F.col(RAW) if is_text(source) else F.when(reason.isNotNull(), F.col(RAW))
    return df.select(
        text("user").alias("user"),
        text("item").alias("item"),
        *[column.alias(name) for name, column in event.items()],
        (value * type_weight).alias("weight"),
        F.lit(source.held_out).cast("string").alias("held_out"),
        F.col(SOURCE).alias("source"),
        F.col(LINE).alias("line"),
        raw.alias(RAW),
        reason.alias(REASON),
    )


def _once(df: DataFrame, name: str, columns: dict[str, Column]) -> DataFrame:
    return once(df, name, F.struct(*[column.alias(key) for key, column in columns.items()]))


def mark_duplicates(parsed: DataFrame, source: EventSource, known: DataFrame | None) -> DataFrame:
    """Give the reason ``duplicate`` to acceptable rows that repeat an event exactly.

    Two events are the same if user, item, time, position, type, weight, context and split are. Data
    with neither times nor positions can hold the same item twice in a row, so that there the line
    counts too. The first row by (source, line) is kept, and of equal rows of a Delta table, which
    have one line, any one.

    Events are compared by 128 bits of hashes: what is shuffled is two numbers an event, and only
    rows that share them with another are looked at again. Of the earlier events those of the same
    days are read, where the data has times.

    Parameters
    ----------
    parsed
        Rows of :func:`parse`, in the same partitions whenever they are read: kept, best.
    source
        The event source.
    known
        Table ``events`` so far.
    """
    by_line = source.columns.timestamp is None and source.columns.position is None
    parsed = _with_fingerprint(parsed, by_line).withColumn(_ROW, F.monotonically_increasing_id())
    good = parsed.where(F.col(REASON).isNull())
    events = good.select(*_FINGERPRINT, F.lit(False).alias("_known"))
    if known is not None:
        same_days = known.where(_in_days_of(good)) if source.columns.timestamp else known
        earlier = _with_fingerprint(same_days, by_line)
        events = events.union(earlier.select(*_FINGERPRINT, F.lit(True)))
    groups = events.groupBy(*_FINGERPRINT).agg(
        F.count("*").alias("_events"), F.max("_known").alias("_known")
    )
    shared = groups.where("_events > 1").select(*_FINGERPRINT, "_known").localCheckpoint()
    found = shared.count()
    if not found:
        return parsed.drop(*_FINGERPRINT, _ROW)
    if found <= _MAX_BROADCAST:
        shared = F.broadcast(shared)
    place = F.struct("source", "line", _ROW)
    first = F.min(place).alias("_first")
    kept = good.join(shared, _FINGERPRINT).groupBy(*_FINGERPRINT, "_known").agg(first)
    if found <= _MAX_BROADCAST:
        kept = F.broadcast(kept.localCheckpoint())
    judged = parsed.join(kept, _FINGERPRINT, "left")
    repeats = F.col("_known") | (place != F.col("_first"))
    reason = F.coalesce(F.col(REASON), F.when(repeats, F.lit(DUPLICATE)))
    columns = [name for name in parsed.columns if name not in (*_FINGERPRINT, _ROW)]
    return judged.withColumn(REASON, reason).select(*columns)


#: Two 64-bit hashes of an event; that two of n events share both has odds of n² / 2¹²⁹.
_FINGERPRINT = ["_hash_1", "_hash_2"]

_ROW = "_row"


def _with_fingerprint(events: DataFrame, by_line: bool) -> DataFrame:
    names = ("user", "item", "timestamp", "position", "event_type", "weight", "held_out")
    values = [F.col(name) for name in names] + [F.to_json("context")]
    if by_line:
        values.append(F.col("line"))
    # The hash passes over nulls, so that which values are null has to be told.
    flags = [F.when(value.isNull(), 1 << n).otherwise(0) for n, value in enumerate(values)]
    nulls = reduce(Column.__add__, flags)
    first, second = (F.xxhash64(F.lit(salt), nulls, *values) for salt in (1, 2))
    return events.withColumns({_FINGERPRINT[0]: first, _FINGERPRINT[1]: second})


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
_MAX_BROADCAST = 1_000_000  # rows of some 100 bytes


def split_accepted(marked: DataFrame) -> tuple[DataFrame, DataFrame]:
    """Return the rows of tables ``events`` and ``quarantine``, without ``run_id``.

    A duplicate of another format than text is kept as the event that was read of it.
    """
    accepted = marked.where(F.col(REASON).isNull()).drop(RAW, REASON)
    event = F.to_json(
        F.struct(*[name for name in accepted.columns if name not in ("source", "line")])
    )
    quarantine = marked.where(F.col(REASON).isNotNull()).select(
        F.coalesce(RAW, event).alias("raw"), F.col(REASON).alias("reason"), "source", "line"
    )
    return accepted, quarantine


def count(accepted: int, quarantine: DataFrame) -> Counts:
    """Count the rejected rows by reason, with the first example of each."""
    found = (
        quarantine.groupBy("reason")
        .agg(F.count("*").alias("rows"), F.min(F.struct("source", "line", "raw")).alias("first"))
        .orderBy("reason")
        .collect()
    )
    rejected, examples = {}, {}
    for row in found:
        rejected[row["reason"]] = row["rows"]
        where = f"{row['first']['source']} line {row['first']['line'] + 1}"
        examples[row["reason"]] = f"{where}: {row['first']['raw'][:200]!r}"
    return Counts(accepted, rejected, examples)


def checkpoint_folder(base: str, path: str) -> str:
    """Return the folder of a source's checkpoint: one a path, under the run's own."""
    return join(base, hashlib.sha256(path.encode()).hexdigest()[:16])


def each_new_batch(
    spark: SparkSession,
    source: EventSource,
    path: str,
    checkpoint: str,
    handle: Callable[[DataFrame], None],
) -> None:
    """Call ``handle`` with every micro-batch of what the checkpoint has not seen, then return.

    Raises
    ------
    Exception
        What ``handle`` raised, as it was, and not wrapped by the stream.
    """
    raised: list[Exception] = []

    def guarded(batch: DataFrame, batch_id: int) -> None:
        try:
            handle(batch)
        except Exception as error:
            raised.append(error)
            raise

    stream = open_stream(spark, source, path).writeStream.foreachBatch(guarded)
    query = stream.option("checkpointLocation", checkpoint).trigger(availableNow=True).start()
    try:
        query.awaitTermination()
    except Exception:
        if raised:
            raise raised[0] from None
        raise


def _time(text: Column, form: str) -> Column:
    if form in ("seconds", "milliseconds"):
        seconds = text.try_cast("double") / (1000.0 if form == "milliseconds" else 1.0)
        # Outside years 1 to 9999 the number is no time in this unit.
        plausible = seconds.between(-62_135_596_800.0, 253_402_300_799.0)
        return F.timestamp_seconds(F.when(plausible, seconds))
    if form == "iso":
        return F.try_to_timestamp(text)
    return F.try_to_timestamp(text, F.lit(form))


def _by_type(kind: Column, events: Events) -> tuple[Column, Column]:
    """Return the weight and polarity of an event's type; null for an unknown one."""
    weight = F.lit(None).cast("double")
    positive = F.lit(None).cast("boolean")
    for name, event_type in events.types.items():
        weight = F.when(kind == name, F.lit(event_type.weight)).otherwise(weight)
        positive = F.when(kind == name, F.lit(event_type.polarity == "positive")).otherwise(
            positive
        )
    return weight, positive
