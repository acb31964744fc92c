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
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

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

#: Seconds after which what nobody has opened again leaves a host's cache.
_KEPT_SECONDS = 24 * 3600


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

    When every value is 1 the matrix is binary and has no file of values. Each task sorts one range
    of rows and writes it (``DataFrame.mapInArrow``, that is mapPartitions on Arrow batches); the
    driver sees one line a range. Tasks may be tried again or twice at once: every attempt writes
    files of its own, and only those that its result names are read.

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
        Ranges of rows, and so the number of tasks; a range must fit a worker's memory. By default
        :func:`recs.session.num_tasks`.

    Raises
    ------
    MatrixError
        If an entry is null, not finite, outside of the shape or there twice.
    """
    from pyspark.sql import functions as F

    num_rows, num_columns = shape
    if not (num_rows > 0 and 0 < num_columns < 2**31 and num_rows * num_columns < 2**63):
        raise MatrixError(f"a matrix of shape {shape} cannot be written: give positive int32 sizes")
    if blocks is None:
        blocks = num_tasks(df.sparkSession)
    height = -(-num_rows // blocks)
    columns = [F.col(row).cast("long").alias("row"), F.col(column).cast("long").alias("column")]
    if value is not None:
        columns.append(F.col(value).cast("float").alias("value"))
    block = F.coalesce(F.floor(F.col("row") / height), F.lit(-1))
    described = (
        df.select(*columns)
        .repartition(blocks, block)
        .mapInArrow(
            _shard_writer(folder, shape, height, value is not None, merge_repeats), _SHARD_SCHEMA
        )
        .collect()
    )
    problems = sorted(shard["problem"] for shard in described if shard["problem"])
    if problems:
        raise MatrixError(f"columns {row!r}, {column!r} make no matrix {shape}: {problems[0]}")
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
    folder: str, shape: tuple[int, int], height: int, weighted: bool, merge_repeats: bool
) -> Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]]:
    """Return the task: batches of entries in, one line for each range of rows written out."""
    num_rows, num_columns = shape

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        def line(**fields: Any) -> pa.RecordBatch:
            kinds = dict.fromkeys(_SHARD, pa.int64()) | dict(
                least=pa.float64(), greatest=pa.float64(), name=pa.string(), problem=pa.string()
            )
            arrays = [pa.array([fields.get(key)], kind) for key, kind in kinds.items()]
            return pa.RecordBatch.from_arrays(arrays, list(kinds))

        keys, values, problem = [], [], None
        for batch in batches:
            problem = _problem(batch, shape)
            if problem:
                yield line(problem=problem)
                return
            rows, cols = batch.column(0).to_numpy(), batch.column(1).to_numpy()
            keys.append(rows * num_columns + cols)
            if weighted:
                values.append(batch.column(2).to_numpy())
        if not keys:
            return
        key = np.concatenate(keys)
        if weighted:
            data = np.concatenate(values)
            order = np.lexsort((data, key)) if merge_repeats else np.argsort(key)
            key, data = key[order], data[order]
        else:
            key.sort()
        twice = np.flatnonzero(key[1:] == key[:-1])
        if len(twice) and merge_repeats:
            first = np.flatnonzero(np.diff(key, prepend=-1))
            key = key[first]
            if weighted:
                data = np.add.reduceat(data.astype(np.float64), first).astype(np.float32)
        elif len(twice):
            i, j = divmod(int(key[twice[0]]), num_columns)
            yield line(problem=f"entry ({i}, {j}) is there twice; merge repeats first")
            return
        rows = key // num_columns
        # Several ranges may share a task: exchange by hash promises one task a range, no more.
        for start in np.unique(rows // height) * height:
            stop = min(start + height, num_rows)
            here = slice(*np.searchsorted(rows, [start, stop]))
            shard = {
                "start": start,
                "stop": stop,
                "nnz": here.stop - here.start,
                "least": float(data[here].min()) if weighted else 1.0,
                "greatest": float(data[here].max()) if weighted else 1.0,
                "name": f"{start:010d}-{uuid.uuid4().hex}",
            }
            arrays = {
                "counts": np.bincount(rows[here] - start, minlength=stop - start),
                "indices": (key[here] % num_columns).astype(np.int32),
            }
            if not _is_binary(shard):
                arrays["data"] = data[here]
            for kind, array in arrays.items():
                write_array(folder, f"{shard['name']}-{kind}.npy", array)
            yield line(**shard)

    return write


def _problem(batch: pa.RecordBatch, shape: tuple[int, int]) -> str | None:
    """Say what is wrong with a batch of entries, if anything."""
    for array, kind in zip(batch.columns, ("row", "column", "value"), strict=False):
        if array.null_count:
            return f"a {kind} is null; leave such entries out"
    for k, (kind, size) in enumerate(zip(("row", "column"), shape, strict=True)):
        ids = batch.column(k).to_numpy()
        wrong = ids[(ids < 0) | (ids >= size)]
        if len(wrong):
            return f"{kind} {wrong[0]} is outside of 0 … {size - 1}; check the ids or the shape"
    if batch.num_columns == 3 and not np.isfinite(batch.column(2).to_numpy()).all():
        return "a value is not finite; leave such entries out"
    return None


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
    cache = _host_cache()
    target = cache / digest
    if not os.environ.get("SPARK_LOCAL_DIRS"):  # Spark's scratch space goes as a whole
        _remove_old(cache, digest)
    with _opening(cache), open(cache / f"{digest}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            making = Path(tempfile.mkdtemp(dir=cache))
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


def _host_cache() -> Path:
    """Return the local folder for mapped arrays.

    In a Spark worker it is the executor's own scratch space, which goes when the executor does;
    elsewhere it is the user's folder in the system's temporary one.
    """
    scratch = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]
    cache = Path(scratch or tempfile.gettempdir()) / f"recs-matrices-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid != os.getuid():
        raise MatrixError(f"{cache} belongs to another user; set TMPDIR to a folder of your own")
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
            if path.stem == digest or path.stat().st_mtime >= oldest:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a new zeroed array that lives in the local file ``path``."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
