"""Users' last events as arrays, and all items that a user has wanted.

Both are a pass over the events of one user after another (:mod:`recs.arrays.streams`). What a task
holds does not grow with a user's events: for sequences the last L of them, for positives the items
that the user has wanted, each once.

Table ``interactions`` is written user by user, in order. Where only the last L events count, each
run of a user's events is cut to what can be among them before it is shuffled, and what is left of a
run is a few rows of bytes. Events in any other order end the same, slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recs.arrays.compiling import compiled_once
from recs.arrays.lists import offsets_of, to_arrow
from recs.arrays.streams import by_user, last_user, packed, run_starts
from recs.config import Sequences
from recs.schema import SEQUENCE_ARRAYS, SPLITS, TABLES

if TYPE_CHECKING:
    import pyarrow as pa

_UPTO = ("train", "validation")
_NO_TIME = -(1 << 40)  # seconds; below any time that Spark knows

_SEQUENCES_SCHEMA = TABLES["sequences"].ddl(
    "user_id", "upto", "session", "last", "length", *SEQUENCE_ARRAYS
)
_POSITIVES_SCHEMA = TABLES["user_positives"].ddl("user_id", *SPLITS)

#: Events of a row of :func:`_chunks` at the most: so many bound a batch of rows.
_CHUNK_EVENTS = 64
_EVENT = np.dtype([("place", np.int32), ("item", np.int32), ("rest", np.int64)])

#: Number of a pause that is longer than any.
_NO_PAUSE = np.iinfo(np.int64).max


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
    events = kept.select(
        packed("user_id", "sequence").alias("key"),
        "item_id",
        # Time, type and split in one number: less to shuffle, sort and hand to Python.
        (second * (1 << 16) + numbers[F.col("event_type")] * 2 + held_out).alias("rest"),
    )
    length, stride, pause = config.length, config.stride or 0, _NO_PAUSE
    if config.session_gap_minutes is not None:
        pause = round(config.session_gap_minutes * 60)
    newest_only = stride == 0 and pause == _NO_PAUSE
    if newest_only:
        # The event before the last L tells the first one's gap.
        events = events.mapInArrow(_chunking(length + 1), "key bigint, events binary")

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tracks = _Tracks.empty(length)
        for events in _unpacked(batches, length + 1) if newest_only else map(_columns, batches):
            yield _rows(_windows(*events, tracks, stride, pause, False))
        yield _rows(_windows(*_NO_EVENTS, tracks, stride, pause, True))

    return by_user(events).mapInArrow(task, _SEQUENCES_SCHEMA)


def user_positives(interactions: DataFrame) -> DataFrame:
    """Return table ``user_positives`` but ``run_id``: users who have wanted any item."""
    split = F.lit(0)
    for number, name in enumerate(SPLITS):
        split = F.when(F.col("split") == name, 1 << number).otherwise(split)
    wanted = interactions.where("positive").select(
        packed("user_id", "item_id").alias("key"), split.cast("byte").alias("splits")
    )

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        keys, splits = np.empty(0, np.int64), np.empty(0, np.int8)
        for batch in batches:
            keys = np.concatenate((keys, batch.column(0).to_numpy()))
            splits = np.concatenate((splits, batch.column(1).to_numpy()))
            if not len(keys):
                continue
            first = run_starts(keys)
            keys, splits = keys[first], np.bitwise_or.reduceat(splits, first)
            done = last_user(keys)
            yield _positives(keys[:done], splits[:done])
            keys, splits = keys[done:], splits[done:]
        yield _positives(keys, splits)

    return by_user(wanted).mapInArrow(task, _POSITIVES_SCHEMA)


# Events in rows of bytes.

_Events = tuple[np.ndarray, np.ndarray, np.ndarray]  # key int64, item int32, rest int64

_NO_EVENTS: _Events = (np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))


def _columns(batch: pa.RecordBatch) -> _Events:
    keys, items, rest = (column.to_numpy() for column in batch.columns)
    return keys, items, rest


def _chunking(most: int) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task: events in, in rows of bytes those that are among the last of their run."""

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield _chunks(*_newest(_columns(batch), most))

    return task


def _newest(events: _Events, most: int) -> _Events:
    """Return the last ``most`` events of each run, and of each run's training events."""
    chosen = _choose(events[0], events[2], most)
    return events[0][chosen], events[1][chosen], events[2][chosen]


@compiled_once()
@njit(cache=True, nogil=True)
def _choose(keys, rest, most):
    """Mark what :func:`_newest` keeps; a run is of one user and ascends."""
    chosen = np.zeros(len(keys), np.bool_)
    stop = len(keys)
    while stop > 0:
        events, train = 0, 0
        p = stop
        while p > 0 and (
            p == stop or (keys[p - 1] < keys[p] and keys[p - 1] >> 32 == keys[p] >> 32)
        ):
            p -= 1
            is_train = rest[p] & 1 == 0
            chosen[p] = events < most or (is_train and train < most)
            events += 1
            train += is_train
        stop = p
    return chosen


def _chunks(keys: np.ndarray, items: np.ndarray, rest: np.ndarray) -> pa.RecordBatch:
    """Return (key, events): each run of events in rows of a few, under the first one's key."""
    import pyarrow as pa

    begins = np.ones(len(keys), bool)
    begins[1:] = (keys[1:] <= keys[:-1]) | (keys[1:] >> 32 != keys[:-1] >> 32)
    starts = np.flatnonzero(begins)
    in_run = np.arange(len(keys)) - np.repeat(starts, np.diff(starts, append=len(keys)))
    starts = np.flatnonzero(in_run % _CHUNK_EVENTS == 0)
    events = np.empty(len(keys), _EVENT)
    events["place"], events["item"], events["rest"] = keys & 0xFFFFFFFF, items, rest
    offsets = np.append(starts, len(keys)).astype(np.int32) * _EVENT.itemsize
    chunks = pa.BinaryArray.from_buffers(
        pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(events.view(np.uint8))]
    )
    return pa.RecordBatch.from_arrays([pa.array(keys[starts]), chunks], ["key", "events"])


def _unpacked(batches: Iterable[pa.RecordBatch], most: int) -> Iterator[_Events]:
    """Yield events, user by user in order; the rows of :func:`_chunks` come sorted by key.

    Runs of a user may lie within each other. So a user is passed on when all have come, cut to the
    last events meanwhile.
    """
    held = _NO_EVENTS
    for batch in batches:
        if not batch.num_rows:
            continue
        found = _read_chunks(batch)
        keys, items, rest = (np.concatenate(pair) for pair in zip(held, found, strict=True))
        if (keys[1:] < keys[:-1]).any():
            order = np.argsort(keys)
            keys, items, rest = keys[order], items[order], rest[order]
        done = last_user(keys)
        yield keys[:done], items[:done], rest[:done]
        held = _newest((keys[done:], items[done:], rest[done:]), most)
    yield held


def _read_chunks(batch: pa.RecordBatch) -> _Events:
    chunks = batch.column(1)
    offsets = np.frombuffer(chunks.buffers()[1], np.int32)
    offsets = offsets[chunks.offset : chunks.offset + len(chunks) + 1]
    data = np.frombuffer(chunks.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    events = data.view(_EVENT)
    users = batch.column(0).to_numpy() >> 32 << 32
    keys = np.repeat(users, np.diff(offsets) // _EVENT.itemsize) | events["place"]
    return keys, events["item"], events["rest"]


# The last events of the user at hand.


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
    """Rows: ``head`` int32 [n, 5] is user, track, session, last, length; the others end to end.

    ``used`` int64 [2] is how many rows, and how many entries of the others, are written.
    """

    head: np.ndarray
    items: np.ndarray
    event_types: np.ndarray
    gaps: np.ndarray
    used: np.ndarray


@compiled_once()
@njit(cache=True, nogil=True)
def _windows(keys, items, rest, tracks, stride, pause, at_end):
    """Add events to the tracks and return the rows that became whole."""
    length = tracks.items.shape[1]
    capacity = 1024 + 3 * length
    out = _Windows(
        np.empty((1024, 5), np.int32),
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int32),
        np.zeros(2, np.int64),
    )
    for e in range(len(keys) + at_end):
        if out.used[0] + 3 > len(out.head):
            head = np.empty((2 * len(out.head), 5), np.int32)
            head[: len(out.head)] = out.head
            out = _Windows(head, out.items, out.event_types, out.gaps, out.used)
        if out.used[1] + 3 * length > len(out.items):
            out = _Windows(
                out.head, _twice(out.items), _twice(out.event_types), _twice(out.gaps), out.used
            )
        user = keys[e] >> 32 if e < len(keys) else -1
        if user != tracks.at[0, _USER]:
            _close(tracks, out)
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
                    _write(tracks, 0, out)
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
                _write(tracks, 0, out)
                at[_WRITTEN] = at[_COUNT]
    return out


@njit(cache=True, nogil=True)
def _close(tracks, out):
    """Write what is still to be written of a user."""
    if tracks.at[0, _COUNT] > tracks.at[0, _WRITTEN]:
        _write(tracks, 0, out)
    if tracks.at[1, _WRITTEN]:
        _write(tracks, 1, out)


@njit(cache=True, nogil=True)
def _write(tracks, track, out):
    """Write a track's last events as a row; there is room for it."""
    length = tracks.items.shape[1]
    at = tracks.at[track]
    held = min(at[_COUNT], length)
    row, end = out.used
    out.head[row] = (at[_USER], track, at[_SESSION], at[_LAST], held)
    for n in range(held):
        p = (at[_COUNT] - held + n) % length
        out.items[end + n] = tracks.items[track, p]
        out.event_types[end + n] = tracks.event_types[track, p]
        out.gaps[end + n] = tracks.gaps[track, p]
    out.used[0] += 1
    out.used[1] += held


@njit(cache=True, nogil=True)
def _twice(array):
    bigger = np.empty(2 * len(array), array.dtype)
    bigger[: len(array)] = array
    return bigger


def _rows(windows: _Windows) -> pa.RecordBatch:
    import pyarrow as pa

    rows, entries = windows.used
    user_id, upto, session, last, length = np.ascontiguousarray(windows.head[:rows].T)
    offsets = offsets_of(length)
    arrays = (windows.items, windows.event_types, windows.gaps)
    return pa.RecordBatch.from_pydict(
        {
            "user_id": user_id,
            "upto": pa.DictionaryArray.from_arrays(upto, list(_UPTO)).cast(pa.string()),
            "session": session,
            "last": last,
            "length": length,
            **{
                name: to_arrow(offsets, pa.array(array[:entries]))
                for name, array in zip(SEQUENCE_ARRAYS, arrays, strict=True)
            },
        }
    )


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
