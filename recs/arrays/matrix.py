"""Sparse matrices as files on storage that every host reaches, mapped into memory once a host.

Spark tasks write a DataFrame of (row, column, value) as shards of compressed sparse rows (CSR);
a manifest, written last, names the shards that count. A worker that opens the matrix finds the
arrays in its host's cache, where the first one to come has put the shards together, and maps them:
all Python workers of a host share one copy, and only the pages that are read take memory.

A matrix by column (CSC) is the CSR of the matrix with rows and columns swapped.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recs.arrays.streams import packed, run_starts
from recs.errors import UserError
from recs.session import num_tasks
from recs.storage import filesystem, join, read_file, write_file

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

# What a task tells of a shard: its rows, entries, smallest and largest value, and its files' name.
_SHARD = ("start", "stop", "nnz", "least", "greatest", "name")
_SHARD_SCHEMA = (
    "start bigint, stop bigint, nnz bigint, least double, greatest double, name string, "
    "problem string"
)

#: Entries of a shard, about; a task holds so many and those of one row.
_SHARD_ENTRIES = 2**21

#: Seconds after which what nobody has opened again leaves a host's cache.
_KEPT_SECONDS = 24 * 3600

#: What the cache may hold of its own: arrays by digest, their locks, and what is being built.
_MAKING = "making-"
_OWN = re.compile(rf"[0-9a-f]{{32}}(\.lock)?|{_MAKING}.*")


class MatrixError(UserError):
    """Entries that make no matrix, or files that are not one."""


class Csr(NamedTuple):
    """A sparse matrix by row, its arrays read-only and mapped from files.

    ``indptr`` int64 [R + 1]; ``indices`` int32 [nnz], ascending within a row; ``data`` float32
    [nnz], or None when every entry is 1; ``shape`` (R, C).
    """

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray | None
    shape: tuple[int, int]


@dataclass(frozen=True)
class CsrFiles:
    """A written matrix, known by its folder: small, picklable, the same on every host."""

    folder: str

    @property
    def manifest(self) -> dict[str, Any]:
        """``shape``, ``nnz``, ``dtype`` (None when every entry is 1), ``least`` and ``shards``."""
        return read_manifest(self.folder)

    def open(self) -> Csr:
        """Map the matrix into memory; the first call on a host copies it there.

        Raises
        ------
        MatrixError
            If the folder holds no finished matrix.
        """
        return _open_csr(self.folder, _manifest_text(self.folder))


def write_csr(
    df: DataFrame,
    folder: str,
    *,
    row: str,
    column: str,
    value: str | None = None,
    shape: tuple[int, int],
    merge_repeats: bool = False,
    blocks: int | None = None,
) -> CsrFiles:
    """Write the entries of ``df`` as a CSR matrix under ``folder``.

    When every value is 1 the matrix is binary and has no file of values. Tasks take ranges of rows
    of about the same number of entries, in order (``DataFrame.mapInArrow``, that is mapPartitions
    on Arrow batches); Spark sorts and spills, and a task merges repeats and writes shards as the
    entries pass by. It holds some :data:`_SHARD_ENTRIES` different entries and those of one row,
    however often they are repeated; the driver sees a line a shard. Tasks may be tried again or
    twice at once: every attempt writes files of its own, and only those that its result names are
    read.

    Parameters
    ----------
    df
        Pairs of ``row`` and ``column`` (integers) and, unless all entries are 1, ``value``.
    folder
        Path or URI; an earlier matrix there is replaced when this one is whole.
    shape
        Rows and columns; rows without an entry are empty.
    merge_repeats
        Take a pair that is there more than once as one entry, of the sum of its values (added up in
        ascending order, so that no order of rows changes it) or 1; else it is refused.
    blocks
        Ranges of rows, and so the number of tasks; by default :func:`recs.session.num_tasks`.

    Raises
    ------
    MatrixError
        If an entry is null, not finite, outside of the shape or there twice.
    """
    from pyspark.sql import functions as F

    num_rows, num_columns = shape
    if not (0 < num_rows < 2**31 and 0 < num_columns < 2**31):
        raise MatrixError(f"a matrix of shape {shape} cannot be written: give positive int32 sizes")
    blocks = blocks or num_tasks(df.sparkSession)
    entries = df.select(
        F.col(row).cast("long").alias("row"),
        F.col(column).cast("long").alias("column"),
        *([] if value is None else [F.col(value).cast("float").alias("value")]),
    )
    right = F.col("row").between(0, num_rows - 1) & F.col("column").between(0, num_columns - 1)
    if value is not None:
        right &= F.abs("value") < float("inf")  # NaN is above all numbers
    # One number to sort by, null where the entry is wrong.
    keyed = entries.select(
        F.when(right, packed("row", "column")).alias("key"), *entries.columns[2:]
    )
    ranges = keyed.repartitionByRange(blocks, F.shiftright("key", 32))
    # Repeats are added up in ascending order.
    order = keyed.columns if merge_repeats else ["key"]
    height = -(-num_rows // blocks)
    write = _shard_writer(folder, height, value is not None, merge_repeats)
    described = ranges.sortWithinPartitions(*order).mapInArrow(write, _SHARD_SCHEMA).collect()
    problems = sorted(shard["problem"] for shard in described if shard["problem"])
    if problems:
        problem = _problem(entries, shape) or problems[0]
        raise MatrixError(f"columns {row!r}, {column!r} make no matrix {shape}: {problem}")
    shards = sorted(({key: shard[key] for key in _SHARD} for shard in described), key=_start)
    binary = all(_is_binary(shard) for shard in shards)
    write_manifest(
        folder,
        {
            "shape": [num_rows, num_columns],
            "nnz": sum(shard["nnz"] for shard in shards),
            "dtype": None if binary else "float32",
            "least": min((shard["least"] for shard in shards), default=1.0),
            "shards": shards,
        },
    )
    return CsrFiles(folder)


def _start(shard: Mapping[str, Any]) -> int:
    return shard["start"]


def _is_binary(shard: Mapping[str, Any]) -> bool:
    """Say whether every entry of a shard is 1, so that it has no file of values."""
    return shard["least"] == 1 and shard["greatest"] == 1


def _shard_writer(
    folder: str, height: int, weighted: bool, merge_repeats: bool
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task: sorted batches of entries in, a line for each shard written out.

    A shard has at most ``height`` rows.
    """

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        def line(**fields: Any) -> pa.RecordBatch:
            kinds = dict.fromkeys(_SHARD, pa.int64()) | dict(
                least=pa.float64(), greatest=pa.float64(), name=pa.string(), problem=pa.string()
            )
            arrays = [pa.array([fields.get(key)], kind) for key, kind in kinds.items()]
            return pa.RecordBatch.from_arrays(arrays, list(kinds))

        unfinished = _Entries.none(weighted)
        parts, size, limit = [unfinished], 0, _SHARD_ENTRIES
        for entries in _merged(batches, weighted):
            if isinstance(entries, str):
                yield line(problem=entries)
                return
            if entries.repeated >= 0 and not merge_repeats:
                i, j = entries.repeated >> 32, entries.repeated & 0xFFFFFFFF
                yield line(problem=f"entry ({i}, {j}) is there twice; merge repeats first")
                return
            parts.append(entries)
            size += len(entries.keys)
            if size < limit:
                continue
            held = _Entries.joined(parts)
            bounds = _shard_bounds(held.keys, height)
            for start, stop in pairwise(bounds[:-1]):  # the last shard may go on
                yield line(**_write_shard(folder, held.slice(start, stop)))
            held = held.slice(bounds[-2], bounds[-1])
            parts, size = [held], len(held.keys)
            limit = max(_SHARD_ENTRIES, 2 * size)
        held = _Entries.joined(parts)
        for start, stop in pairwise(_shard_bounds(held.keys, height)):
            yield line(**_write_shard(folder, held.slice(start, stop)))

    return write


class _Entries(NamedTuple):
    """Different entries in order: ``row << 32 | column`` int64, and float32 values unless all 1.

    ``repeated`` is the key of an entry that was there more than once, or -1.
    """

    keys: np.ndarray
    values: np.ndarray | None
    repeated: int = -1

    @classmethod
    def none(cls, weighted: bool) -> _Entries:
        return cls(np.empty(0, np.int64), np.empty(0, np.float32) if weighted else None)

    @classmethod
    def joined(cls, parts: Sequence[_Entries]) -> _Entries:
        values = [part.values for part in parts if part.values is not None]
        keys = np.concatenate([part.keys for part in parts])
        return cls(keys, np.concatenate(values) if values else None)

    def slice(self, start: int, stop: int) -> _Entries:
        values = None if self.values is None else self.values[start:stop]
        return _Entries(self.keys[start:stop], values)


def _merged(batches: Iterable[pa.RecordBatch], weighted: bool) -> Iterator[_Entries | str]:
    """Yield the entries of sorted batches, each once, or the first problem, and end."""
    last, total = -1, 0.0  # the entry that may go on in the next batch, and its sum so far
    for batch in batches:
        if not batch.num_rows:
            continue
        if batch.column(0).null_count:
            yield "an entry is null, outside of the shape or not finite"
            return
        keys = batch.column(0).to_numpy()
        first = run_starts(keys)
        repeats = np.flatnonzero(np.diff(first, append=len(keys)) > 1)
        repeated = int(keys[first[repeats[0]]]) if len(repeats) else -1
        unique, sums = keys[first], None
        if weighted:
            # One value after the other, so that no cut between batches changes a sum.
            values = batch.column(1).to_numpy().astype(np.float64)
            goes_on = unique[0] == last
            if goes_on:
                values[0] += total
            sums = values
            if len(repeats):
                entry = np.zeros(len(keys), np.int64)
                entry[first[1:]] = 1
                sums = np.bincount(np.cumsum(entry), values)
        if unique[0] == last:
            repeated = last
        elif last >= 0:
            unique = np.append(last, unique)
            sums = None if sums is None else np.append(total, sums)
        last, total = int(unique[-1]), 0.0 if sums is None else float(sums[-1])
        sums = None if sums is None else sums[:-1].astype(np.float32)
        yield _Entries(unique[:-1], sums, repeated)
    if last >= 0:
        totals = np.array([total], np.float32) if weighted else None
        yield _Entries(np.array([last]), totals)


def _shard_bounds(keys: np.ndarray, height: int) -> list[int]:
    """Return where shards begin, and the end: each has whole rows, and enough or ``height``."""
    rows = keys >> 32
    bounds = [0]
    while bounds[-1] < len(rows):
        start = bounds[-1]
        tallest = np.searchsorted(rows, rows[start] + height)
        full = start + _SHARD_ENTRIES
        if full < tallest:
            tallest = np.searchsorted(rows, rows[full - 1], side="right")
        bounds.append(int(tallest))
    return bounds


def _write_shard(folder: str, entries: _Entries) -> dict[str, Any]:
    """Write whole rows as a shard, and tell what it is."""
    rows, values = entries.keys >> 32, entries.values
    start, stop = int(rows[0]), int(rows[-1]) + 1
    shard = {
        "start": start,
        "stop": stop,
        "nnz": len(rows),
        "least": 1.0 if values is None else float(values.min()),
        "greatest": 1.0 if values is None else float(values.max()),
        "name": f"{start:010d}-{uuid.uuid4().hex}",
    }
    arrays = {
        "counts": np.bincount(rows - start, minlength=stop - start),
        "indices": (entries.keys & 0xFFFFFFFF).astype(np.int32),
    }
    if values is not None and not _is_binary(shard):
        arrays["data"] = values
    for kind, array in arrays.items():
        write_array(folder, f"{shard['name']}-{kind}.npy", array)
    return shard


def _problem(entries: DataFrame, shape: tuple[int, int]) -> str | None:
    """Say what is wrong with entries, if anything."""
    from pyspark.sql import functions as F

    sizes = dict(zip(("row", "column"), shape, strict=True))
    counts = [F.count_if(F.col(kind).isNull()).alias(f"{kind}_null") for kind in entries.columns]
    ends = [f(kind).alias(f"{kind}_{f.__name__}") for kind in sizes for f in (F.min, F.max)]
    infinite = F.lit(0)
    if "value" in entries.columns:
        infinite = F.count_if(~(F.abs("value") < float("inf")))
    found = entries.agg(*counts, *ends, infinite.alias("infinite")).collect()[0]
    for kind in entries.columns:
        if found[f"{kind}_null"]:
            return f"a {kind} is null; leave such entries out"
    for kind, size in sizes.items():
        for end in (found[f"{kind}_min"], found[f"{kind}_max"]):
            if not 0 <= end < size:
                return f"{kind} {end} is outside of 0 … {size - 1}; check the ids or the shape"
    return "a value is not finite; leave such entries out" if found["infinite"] else None


# Files on shared storage.


def write_array(folder: str, name: str, array: np.ndarray) -> None:
    """Write ``folder/name`` in NumPy's npy format."""
    fs, path = filesystem(join(folder, name))
    with fs.open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_manifest(folder: str, manifest: Mapping[str, Any]) -> None:
    """Write ``folder/manifest.json``: from here on the folder is whole."""
    write_file(join(folder, "manifest.json"), json.dumps(manifest).encode())


def read_manifest(folder: str) -> dict[str, Any]:
    """Return the manifest of ``folder``.

    Raises
    ------
    MatrixError
        If there is none: the folder was never finished.
    """
    return json.loads(_manifest_text(folder))


def is_written(folder: str) -> bool:
    """Tell whether ``folder`` holds a finished matrix."""
    return read_file(join(folder, "manifest.json")) is not None


def _manifest_text(folder: str) -> str:
    content = read_file(join(folder, "manifest.json"))
    if content is None:
        raise MatrixError(f"{folder} holds no finished matrix (no manifest.json); write it again")
    return content.decode()


# A host's cache.


@functools.lru_cache(maxsize=16)
def _open_csr(folder: str, manifest_text: str) -> Csr:
    manifest = json.loads(manifest_text)

    def build(target: Path) -> None:
        num_rows, nnz = manifest["shape"][0], manifest["nnz"]
        indptr = new_array(target / "indptr.npy", (num_rows + 1,), np.int64)
        indices = new_array(target / "indices.npy", (nnz,), np.int32)
        data = new_array(target / "data.npy", (nnz,), np.float32) if manifest["dtype"] else None
        end, filled = 0, 0
        for shard in manifest["shards"]:
            start, stop, here = shard["start"], shard["stop"], slice(end, end + shard["nnz"])
            indptr[filled + 1 : start + 1] = end
            counts = read_array(folder, f"{shard['name']}-counts.npy")
            np.cumsum(counts, out=indptr[start + 1 : stop + 1])
            indptr[start + 1 : stop + 1] += end
            indices[here] = read_array(folder, f"{shard['name']}-indices.npy")
            if data is not None and _is_binary(shard):
                data[here] = 1.0
            elif data is not None:
                data[here] = read_array(folder, f"{shard['name']}-data.npy")
            end, filled = here.stop, stop
        indptr[filled + 1 :] = end

    arrays = map_cached(folder, manifest_text, build)
    return Csr(arrays["indptr"], arrays["indices"], arrays.get("data"), tuple(manifest["shape"]))


def map_cached(
    folder: str, manifest_text: str, build: Callable[[Path], None]
) -> dict[str, np.ndarray]:
    """Map the arrays that ``build`` makes of a folder's shards; it runs once a host.

    Parameters
    ----------
    folder, manifest_text
        What the arrays are made of; together they name the place in the cache.
    build
        Writes ``NAME.npy`` files to the local folder that it is given.

    Returns
    -------
    dict
        NAME to read-only mapped array.
    """
    digest = hashlib.sha256(f"{folder}\n{manifest_text}".encode()).hexdigest()[:32]
    cache = host_cache()
    target = cache / digest
    if not os.environ.get("SPARK_LOCAL_DIRS"):  # Spark's scratch space goes as a whole
        _remove_old(cache, digest)
    with _opening(cache), open(cache / f"{digest}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            making = Path(tempfile.mkdtemp(prefix=_MAKING, dir=cache))
            try:
                build(making)
                making.rename(target)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        os.utime(target)
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(target.glob("*.npy"))}


def read_array(folder: str, name: str) -> np.ndarray:
    """Read ``folder/name``, written by :func:`write_array`."""
    fs, path = filesystem(join(folder, name))
    with fs.open(path, "rb") as file:
        return np.load(file, allow_pickle=False)


def host_cache() -> Path:
    """Return the local folder for mapped arrays.

    In a Spark worker it is the executor's own scratch space, which goes when the executor does;
    elsewhere it is the user's folder in the system's temporary one.
    """
    scratch = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]
    cache = Path(scratch or tempfile.gettempdir()) / f"recs-matrices-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    # Anybody could have put a link of this name into a shared folder.
    found = cache.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise MatrixError(
            f"{cache} is a link, or belongs to another user: set TMPDIR to a folder of your own"
        )
    return cache


@contextmanager
def _opening(cache: Path) -> Iterator[None]:
    """Keep others from removing anything from the cache until the block ends."""
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _remove_old(cache: Path, digest: str) -> None:
    """Remove what nobody has opened for a day, but for what has this digest.

    Processes that have mapped a file that is removed keep it mapped.
    """
    with open(cache / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody is opening something; the next to come will do
        oldest = time.time() - _KEPT_SECONDS
        for path in cache.iterdir():
            ours = _OWN.fullmatch(path.name) and path.stem != digest
            if not ours or path.lstat().st_mtime >= oldest:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a new zeroed array that lives in the local file ``path``."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
