"""Batches of a training set, as the plan says: two readers, and one feed over either.

A reader only reads the files it is told to, in that order. What makes a batch (the order of rows,
windows of long histories, empty places) is the plan's and the feed's, so that both readers give
the same batches.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

import numpy as np

from recs.schema import SEQUENCE_ARRAYS
from recs.storage import filesystem
from recs.training.dataset import NUMBERS, Positives, TrainingSet
from recs.training.plan import Plan, Step

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger("recs")

FeedName = Literal["petastorm", "arrow"]

#: Columns of a file: int32[rows], or int32[rows, length of the file].
Rows = dict[str, np.ndarray]

_PADDING = {"gaps": 0}  # of other columns it is -1
_WINDOWS = 3  # what a random generator is for; the plan has the numbers before
_FILES_AHEAD, _FILES_AT_ONCE = 4, 16
_BATCHES_AHEAD = 4
#: Petastorm ends early now and then, not before the first file so many times in turn.
_MOST_EMPTY = 10

T = TypeVar("T")


class Batch(NamedTuple):
    """The rows of a batch that one rank gets.

    Attributes
    ----------
    step : int
        Number of the batch in the epoch.
    places : int64[b]
        Place of each row in the batch of all ranks.
    columns : dict
        int32[b] or int32[b, T]; a place that no row fills has -1 and a length of 0.
    positives
        Of the rows' users, where the feed was given any.
    """

    step: int
    places: np.ndarray
    columns: Rows
    positives: Positives | None


class Reader(Protocol):
    """Reads the columns of Parquet files of one row group."""

    def __init__(self, columns: Sequence[str]) -> None: ...

    def read(self, uris: Iterable[str]) -> Iterator[Rows]:
        """Return the rows of each file, in the order of the files."""


class ArrowReader:
    """Reads with pyarrow, some files ahead, in one thread: more only take turns with the feed."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)

    def read(self, uris: Iterable[str]) -> Iterator[Rows]:
        with ThreadPoolExecutor(1) as threads:
            yield from _ahead(threads, self._read, iter(uris), _FILES_AHEAD)

    def _read(self, uri: str) -> Rows:
        import pyarrow.parquet as pq

        fs, path = filesystem(uri)
        with fs.open(path) as file:
            table = pq.ParquetFile(file).read(columns=self._columns, use_threads=False)
        rows = {}
        for name in self._columns:
            column = table.column(name).combine_chunks()
            if name in SEQUENCE_ARRAYS:
                flat = column.flatten().to_numpy(zero_copy_only=False)
                rows[name] = flat.reshape(table.num_rows, -1)
            else:
                rows[name] = column.to_numpy(zero_copy_only=False)
        return rows


class PetastormReader:
    """Reads with Petastorm's ``make_batch_reader``, whose own shuffling stays off.

    It opens some files at a time, for it looks at all of them before it reads the first. One worker
    thread keeps their order. Its reader may end before the last files, when its threads take turns
    unluckily; those are read again.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._fields = [f"^{name}$" for name in columns]

    def read(self, uris: Iterable[str]) -> Iterator[Rows]:
        left = iter(uris)
        groups = iter(lambda: list(islice(left, _FILES_AT_ONCE)), [])
        with ThreadPoolExecutor(1) as thread:
            for group in _ahead(thread, self._read_all, groups, 1):
                yield from group

    def _read_all(self, uris: list[str]) -> list[Rows]:
        found: list[Rows] = []
        empty = 0
        while len(found) < len(uris):
            rows = self._read(uris[len(found) :])
            found += rows
            empty = 0 if rows else empty + 1
            if empty == _MOST_EMPTY:
                raise OSError(f"Petastorm did not return {uris[len(found)]}: train with feed=arrow")
        return found

    def _read(self, uris: list[str]) -> list[Rows]:
        """Return the rows of the files, or of the first of them."""
        from petastorm import make_batch_reader

        # It wants metadata beside the files that only its own writer makes, and does without.
        logging.getLogger("petastorm").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            # Petastorm calls much of pyarrow that pyarrow will drop; its version is held for that.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            fs, _ = filesystem(uris[0])
            reader = make_batch_reader(
                [_url(uri) for uri in uris],
                filesystem=_file_system(fs),
                schema_fields=self._fields,
                shuffle_row_groups=False,
                workers_count=1,
            )
            # As a context manager it would print a line each time.
            try:
                return [rows._asdict() for rows in reader]
            finally:
                reader.stop()
                reader.join()


def _url(uri: str) -> str:
    """Return a URI's path as a URL that Petastorm cuts into no query and no fragment."""
    _, path = filesystem(uri)
    quoted = path.replace("%", "%25").replace("#", "%23").replace("?", "%3F")
    return f"file://{quoted}" if path.startswith("/") else f"file:{quoted}"


def _file_system(fs: AbstractFileSystem) -> Any:
    """Return a file system as Petastorm passes it on to pyarrow, for the paths of :func:`_url`.

    Its own knows local files alone, and takes the path of a URL as it stands there.
    """
    import pyarrow.filesystem

    class Quoted(pyarrow.filesystem.FileSystem):
        def exists(self, path: str) -> bool:
            return bool(fs.exists(unquote(path)))

        def isfile(self, path: str) -> bool:
            return bool(fs.isfile(unquote(path)))

        def isdir(self, path: str) -> bool:
            return bool(fs.isdir(unquote(path)))

        def open(self, path: str, mode: str = "rb") -> Any:
            return fs.open(unquote(path), mode)

    return Quoted()


READERS: dict[str, type[Reader]] = {"petastorm": PetastormReader, "arrow": ArrowReader}


def petastorm_reads() -> bool:
    """Return whether Petastorm reads a small file with the pyarrow and the NumPy that are here.

    It needs an old pyarrow, and what fails with a newer one, and where, differs: so it is tried.
    """
    if importlib.util.find_spec("petastorm") is None:
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = pa.array([[1, 2], [3, 4]], pa.list_(pa.int32()))
    table = pa.table({"length": pa.array([5, 6], pa.int32()), "items": lists})
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "rows.parquet")
        pq.write_table(table, file)
        try:
            (rows,) = PetastormReader(table.column_names).read([file])
        except Exception as error:
            log.warning(f"petastorm does not read here ({type(error).__name__}: {error})")
            return False
    return rows["length"].tolist() == [5, 6] and rows["items"].tolist() == [[1, 2], [3, 4]]


@dataclass(frozen=True)
class Feed:
    """The batches of one part of a training set, for one rank.

    Parameters
    ----------
    training_set
        What is read.
    part
        ``train`` or ``validation``.
    plan
        Of that part's files.
    reader
        ``petastorm`` or ``arrow``.
    columns
        Columns of the files.
    window
        Longest history of a batch: of a longer one a random part of so many events, another in
        every epoch (its last events where the plan does not shuffle).
    rank, num_ranks
        Which ranks read, and which of them this is.
    positives
        All users' positives, to give each batch those of its users.
    """

    training_set: TrainingSet
    part: str
    plan: Plan
    reader: FeedName
    columns: tuple[str, ...]
    window: int
    rank: int = 0
    num_ranks: int = 1
    positives: Positives | None = None

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch from step ``start`` on; a thread makes some ahead."""
        return prefetch(lambda: self._batches(epoch, start), _BATCHES_AHEAD)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        plan = self.plan
        rows_a_lane = plan.batch_size // plan.lanes
        lanes = np.arange(self.rank, plan.lanes, self.num_ranks)
        places = (lanes[:, None] * rows_a_lane + np.arange(rows_a_lane)).ravel()
        reader = READERS[self.reader](self.columns)
        read = reader.read(self._uris(plan.steps(epoch, self.rank, self.num_ranks, start)))
        held: dict[int, tuple[np.ndarray, Rows]] = {}
        for step in plan.steps(epoch, self.rank, self.num_ranks, start):
            width = min(step.length, self.window)
            columns = {name: self._empty(name, places.size, width) for name in self.columns}
            for file, first, last, place in step.slices:
                if file not in held:
                    held[file] = plan.order(epoch, file), self._cut(next(read), epoch, file)
                # Lanes of this rank lie every num_ranks-th, its rows end to end.
                lane, offset = divmod(place, rows_a_lane)
                at = lane // self.num_ranks * rows_a_lane + offset
                order, rows = held[file]
                taken = order[first:last]
                for name, values in rows.items():
                    # Places that exist, which "clip" does not have checked twice.
                    values.take(taken, 0, columns[name][at : at + taken.size], "clip")
                if last == plan.files[file].rows:
                    del held[file]
            owned = None if self.positives is None else self.positives.of(columns["user_id"])
            yield Batch(step.number, places, columns, owned)

    def _uris(self, steps: Iterator[Step]) -> Iterator[str]:
        """Return the files of the steps, each once, in the order of their first use."""
        seen: set[int] = set()
        for step in steps:
            for cut in step.slices:
                if cut.file not in seen:
                    seen.add(cut.file)
                    yield self.training_set.path(self.plan.files[cut.file].name)

    def _cut(self, rows: Rows, epoch: int, file: int) -> Rows:
        """Cut long histories of a file."""
        length = self.plan.files[file].length
        if length > self.window:
            spare = np.maximum(rows["length"] - self.window, 0)
            if self.plan.shuffle:
                random = np.random.default_rng([self.plan.seed % 2**64, _WINDOWS, epoch, file])
                spare -= random.integers(0, spare, endpoint=True, dtype=spare.dtype)
            else:
                spare[:] = 0
            # So many of the last events are left out.
            at = length - self.window - spare[:, None] + np.arange(self.window)
            rows = {
                name: np.take_along_axis(values, at, 1) if name in SEQUENCE_ARRAYS else values
                for name, values in rows.items()
            }
            rows["length"] = np.minimum(rows["length"], self.window)
        return rows

    def _empty(self, name: str, size: int, width: int) -> np.ndarray:
        shape = (size, width) if name in SEQUENCE_ARRAYS else (size,)
        return np.full(shape, 0 if name == "length" else _PADDING.get(name, -1), np.int32)


def columns_of(training_set: TrainingSet, part: str, arrays: Iterable[str]) -> tuple[str, ...]:
    """Return the columns that a part's batches need: its numbers, and these arrays."""
    numbers = [name for name in NUMBERS if name != "target" or part == "validation"]
    return (*numbers, *(name for name in SEQUENCE_ARRAYS if name in set(arrays)))


def prefetch(make: Callable[[], Iterator[T]], size: int) -> Iterator[T]:
    """Return what an iterator gives, made up to ``size`` ahead in a thread of its own."""
    made: queue.SimpleQueue[Any] = queue.SimpleQueue()
    places: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each value that may wait
    stopped = threading.Event()
    done = object()
    for _ in range(size):
        places.put(None)

    def run() -> None:
        try:
            for value in make():
                places.get()
                if stopped.is_set():
                    return
                made.put(value)
            made.put(done)
        except BaseException as error:
            made.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (value := made.get()) is not done:
            if isinstance(value, BaseException):
                raise value
            places.put(None)
            yield value
    finally:
        stopped.set()
        places.put(None)
        thread.join()


def _ahead(
    threads: ThreadPoolExecutor, work: Callable[[Any], T], values: Iterator[Any], size: int
) -> Iterator[T]:
    """Return ``work`` of each value in order, of up to ``size`` of them ahead."""
    waiting = [threads.submit(work, value) for value in islice(values, size)]
    while waiting:
        result = waiting.pop(0).result()
        waiting += [threads.submit(work, value) for value in islice(values, 1)]
        yield result
