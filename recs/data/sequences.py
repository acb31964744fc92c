"""Users' events as arrays of one fixed length, and all items that a user has wanted.

Both are one shuffle by user, a sort by one packed bigint (which Spark sorts by radix), and a pass
over the sorted stream in Arrow batches. What a task holds does not grow with a user's events: for
sequences the last L of them, for positives the items that the user has wanted, each once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recs.config import Sequences
from recs.schema import PADDING, SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

_UPTO = ("train", "validation")
_NO_TIME = -(1 << 40)  # seconds; below any time that Spark knows

_SEQUENCES_SCHEMA = (
    "user_id int, upto string, session int, last int, length int, "
    "items array<int>, event_types array<int>, gaps array<int>"
)
_POSITIVES_SCHEMA = "user_id int, " + ", ".join(f"{split} array<int>" for split in SPLITS)


def sequences(
    interactions: DataFrame, event_type_ids: Mapping[str, int], config: Sequences
) -> DataFrame:
    """Return table ``sequences`` but ``run_id``.

    Rows of ``upto`` *train* hold training events alone: what models are trained on, and the input
    that precedes validation targets. A row of ``upto`` *validation* holds the newest events of
    training and validation together, of users who have any of the latter: the input that precedes
    test targets.

    Parameters
    ----------
    interactions
        The table; events of the test are left out.
    event_type_ids
        Number of each event type that enters; events of other types are left out.
    config
        Length L, pauses that cut histories, and whether earlier windows are kept too.
    """
    numbers = F.create_map(*[F.lit(p) for pair in event_type_ids.items() for p in pair])
    kept = interactions.where(
        F.col("event_type").isin(*event_type_ids) & F.col("split").isin(*_UPTO)
    )
    second = F.coalesce(F.unix_seconds("timestamp"), F.lit(_NO_TIME))
    held_out = (F.col("split") != "train").cast("bigint")
    packed = kept.select(
        _packed("user_id", "sequence").alias("key"),
        "item_id",
        # Time, type and split in one number: less to shuffle, sort and hand to Python.
        (second * (1 << 16) + numbers[F.col("event_type")] * 2 + held_out).alias("rest"),
    )
    pause = np.iinfo(np.int64).max
    if config.session_gap_minutes is not None:
        pause = round(config.session_gap_minutes * 60)
    length, stride = config.length, config.stride or 0

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tracks = _Tracks.empty(length)
        for batch in batches:
            keys, items, rest = (column.to_numpy() for column in batch.columns)
            yield _rows(_windows(keys, items, rest, tracks, stride, pause))
        nothing = np.empty(0, np.int64)
        last = _windows(nothing, nothing.astype(np.int32), nothing, tracks, stride, pause, True)
        yield _rows(last)

    return _by_user(packed).mapInArrow(task, _SEQUENCES_SCHEMA)


def user_positives(interactions: DataFrame) -> DataFrame:
    """Return table ``user_positives`` but ``run_id``: users who have wanted any item."""
    split = F.lit(0)
    for number, name in enumerate(SPLITS):
        split = F.when(F.col("split") == name, 1 << number).otherwise(split)
    packed = interactions.where("positive").select(
        _packed("user_id", "item_id").alias("key"), split.cast("byte").alias("splits")
    )

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        keys, splits = np.empty(0, np.int64), np.empty(0, np.int8)
        for batch in batches:
            keys = np.concatenate((keys, batch.column(0).to_numpy()))
            splits = np.concatenate((splits, batch.column(1).to_numpy()))
            if not len(keys):
                continue
            first = np.flatnonzero(np.diff(keys, prepend=-1))
            keys, splits = keys[first], np.bitwise_or.reduceat(splits, first)
            # The last user may go on in the next batch.
            done = np.searchsorted(keys, keys[-1] >> 32 << 32)
            yield _positives(keys[:done], splits[:done])
            keys, splits = keys[done:], splits[done:]
        yield _positives(keys, splits)

    return _by_user(packed).mapInArrow(task, _POSITIVES_SCHEMA)


def _packed(user: str, place: str) -> Column:
    return F.shiftleft(F.col(user).cast("bigint"), 32) + F.col(place)


def _by_user(packed: DataFrame) -> DataFrame:
    """Bring each user's rows together, in the order of ``key``."""
    return packed.repartition(F.shiftright("key", 32)).sortWithinPartitions("key")


class _Tracks(NamedTuple):
    """The last events of the user at hand, once of training (0) and once with validation (1).

    ``items``, ``event_types``, ``gaps`` int32 [2, L] are rings: event n of the session is at n mod
    L. ``at`` int64 [2, 6] holds, of each track, what :data:`_USER` … name.
    """

    items: np.ndarray
    event_types: np.ndarray
    gaps: np.ndarray
    at: np.ndarray

    @classmethod
    def empty(cls, length: int) -> _Tracks:
        items, event_types, gaps = np.zeros((3, 2, length), np.int32)
        at = np.zeros((2, 6), np.int64)
        at[:, _USER] = -1
        return cls(items, event_types, gaps, at)


#: Columns of ``_Tracks.at``: the user; events of the session so far; number of the session; place
#: and time of the newest event; events up to the newest window written (track 1: whether any event
#: is of the validation).
_USER, _COUNT, _SESSION, _LAST, _SECOND, _WRITTEN = range(6)


class _Windows(NamedTuple):
    """Rows: ``head`` int32 [n, 5] is user, track, session, last, length; the others [n, L]."""

    head: np.ndarray
    items: np.ndarray
    event_types: np.ndarray
    gaps: np.ndarray


@njit(cache=True, nogil=True)
def _windows(keys, items, rest, tracks, stride, pause, at_end=False):
    """Add events to the tracks and return the rows that became whole."""
    length = tracks.items.shape[1]
    capacity = 1024
    out = _Windows(
        np.empty((capacity, 5), np.int32),
        np.empty((capacity, length), np.int32),
        np.empty((capacity, length), np.int32),
        np.empty((capacity, length), np.int32),
    )
    size = 0
    for e in range(len(keys) + at_end):
        if size + 3 > len(out.head):
            out = _Windows(_twice(out[0]), _twice(out[1]), _twice(out[2]), _twice(out[3]))
        user = keys[e] >> 32 if e < len(keys) else -1
        if user != tracks.at[0, _USER]:
            size = _close(tracks, out, size)
            tracks.at[:] = 0
            tracks.at[:, _USER] = user
        if user < 0:
            continue
        place, second = keys[e] & 0xFFFFFFFF, rest[e] >> 16
        kind, held_out = (rest[e] >> 1) & 0x7FFF, rest[e] & 1
        for track in range(held_out, 2):
            at = tracks.at[track]
            gap = 0
            if at[_COUNT] > 0 and second != _NO_TIME and at[_SECOND] != _NO_TIME:
                gap = second - at[_SECOND]
            if gap > pause:
                if track == 0 and at[_COUNT] > at[_WRITTEN]:
                    size = _write(tracks, 0, out, size)
                at[_SESSION] += 1
                at[_COUNT] = 0
                if track == 0:
                    at[_WRITTEN] = 0
                gap = 0
            p = at[_COUNT] % length
            tracks.items[track, p] = items[e]
            tracks.event_types[track, p] = kind
            tracks.gaps[track, p] = min(max(gap, 0), 2**31 - 1)
            at[_COUNT] += 1
            at[_LAST] = place
            at[_SECOND] = second
            if track == 1:
                at[_WRITTEN] |= held_out
            elif stride > 0 and at[_COUNT] >= length and (at[_COUNT] - length) % stride == 0:
                size = _write(tracks, 0, out, size)
                at[_WRITTEN] = at[_COUNT]
    return _Windows(out.head[:size], out.items[:size], out.event_types[:size], out.gaps[:size])


@njit(cache=True, nogil=True)
def _close(tracks, out, size):
    """Write what is still to be written of a user."""
    if tracks.at[0, _COUNT] > tracks.at[0, _WRITTEN]:
        size = _write(tracks, 0, out, size)
    if tracks.at[1, _WRITTEN]:
        size = _write(tracks, 1, out, size)
    return size


@njit(cache=True, nogil=True)
def _write(tracks, track, out, size):
    """Write a track's last events as row ``size``, padded on the left."""
    length = tracks.items.shape[1]
    at = tracks.at[track]
    held = min(at[_COUNT], length)
    out.head[size] = (at[_USER], track, at[_SESSION], at[_LAST], held)
    for column in range(length - held):
        out.items[size, column] = PADDING
        out.event_types[size, column] = PADDING
        out.gaps[size, column] = 0
    for n in range(held):
        p = (at[_COUNT] - held + n) % length
        out.items[size, length - held + n] = tracks.items[track, p]
        out.event_types[size, length - held + n] = tracks.event_types[track, p]
        out.gaps[size, length - held + n] = tracks.gaps[track, p]
    return size + 1


@njit(cache=True, nogil=True)
def _twice(array):
    bigger = np.empty((2 * len(array), array.shape[1]), array.dtype)
    bigger[: len(array)] = array
    return bigger


def _rows(windows: _Windows) -> pa.RecordBatch:
    import pyarrow as pa

    head = [np.ascontiguousarray(column) for column in windows.head.T]
    upto = pa.DictionaryArray.from_arrays(head[1], list(_UPTO)).cast(pa.string())
    length = windows.items.shape[1]
    offsets = pa.array(np.arange(len(windows.head) + 1, dtype=np.int32) * length)
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))
        for values in (windows.items, windows.event_types, windows.gaps)
    ]
    names = ["user_id", "upto", "session", "last", "length", "items", "event_types", "gaps"]
    heads = [pa.array(head[0]), upto, *(pa.array(column) for column in head[2:])]
    return pa.RecordBatch.from_arrays([*heads, *lists], names)


def _positives(keys: np.ndarray, splits: np.ndarray) -> pa.RecordBatch:
    """Return the rows of users whose wanted items are all here."""
    import pyarrow as pa

    owners = keys >> 32
    users, first = np.unique(owners, return_index=True)
    bounds = np.append(first, len(keys))
    columns = {"user_id": pa.array(users.astype(np.int32))}
    for number, name in enumerate(SPLITS):
        chosen = (splits & (1 << number)) > 0
        offsets = np.concatenate(([0], np.cumsum(chosen)))[bounds].astype(np.int32)
        items = (keys[chosen] & 0xFFFFFFFF).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(items))
    return pa.RecordBatch.from_pydict(columns)
