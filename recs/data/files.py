"""What is delivered: the files of a source, or the versions of a Delta table, and which are new.

Table ``files`` is the ledger of what was read: a row a file (path, size, time of modification) or a
table version. What is not in it as it is now is new. A file that has grown or was replaced, or a
table that was made anew, is read again whole, and its events that are known already are found to be
duplicates.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.config import CandidateSource, Source
from recs.errors import UserError
from recs.session import settings
from recs.storage import filesystem, is_hidden, is_local

log = logging.getLogger("recs")

#: Endings of packed files that Spark does not unpack line by line.
_PACKED = (".zip", ".zst", ".xz", ".7z", ".lz4", ".br", ".rar", ".tar", ".tgz")

#: Names that tools leave beside data and nobody takes for data.
_BESIDE = re.compile(r"_SUCCESS|_committed_.*|_started_.*|_metadata|_common_metadata|\..*\.crc")

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class SourceError(UserError):
    """Delivered data whose form is not what the configuration says."""


@dataclass(frozen=True)
class Delivered:
    """A file, or a version of a Delta table, that is to be read.

    Attributes
    ----------
    source
        Its number in table ``files``, which rows name it by.
    path
        Where it lies, as people write it.
    uri
        The same as Spark's file metadata write it, percent-encoded; empty for a table.
    size, modified
        Bytes, and milliseconds since 1970; None for a table.
    version
        Of a Delta table; None for a file.
    table
        Delta's id of the table, which another table on the same path does not have.
    since
        The version of the table that was read before; None where none was.
    """

    source: int
    path: str
    uri: str = ""
    size: int | None = None
    modified: int | None = None
    version: int | None = None
    table: str | None = None
    since: int | None = field(default=None, compare=False)

    @property
    def place(self) -> str:
        """The path with its numbers padded, so that ``day-9`` comes before ``day-10``."""
        return natural(self.path)

    @property
    def partitions(self) -> dict[str, str | None]:
        """What folders named ``column=value`` on its path say."""
        found: dict[str, str | None] = {}
        for folder in self.path.split("/")[:-1]:
            name, equals, value = folder.partition("=")
            if equals:
                found[unquote(name)] = None if value == _NULL_PARTITION else unquote(value)
        return found


def natural(path: str) -> str:
    """Return a text that sorts as people count: numbers by value, the rest as it is.

    >>> sorted(["day-10.csv", "day-9.csv"], key=natural)
    ['day-9.csv', 'day-10.csv']
    """
    return re.sub(r"\d+", lambda match: match.group().zfill(20), path)


def new_deliveries(
    spark: SparkSession,
    source: Source | CandidateSource,
    path: str,
    known: DataFrame | None,
    first: int,
) -> list[Delivered]:
    """Return what of a source was not read before as it is now, in natural order of paths.

    Parameters
    ----------
    path
        File, folder, glob or Delta table.
    known
        Table ``files`` as far as it is of this source's kind and settings; None before the first
        run.
    first
        Number that the first of them gets.

    Raises
    ------
    SourceError
        If a file's name is one that Spark does not read.
    """
    if source.format == "delta":
        return _new_version(spark, path, known, first)
    _warn_of_hidden(path)
    listed = _list(spark, path)
    if known is not None:
        same = ["path", "size", "modified"]
        listed = listed.join(known.select(*same), same, "left_anti")
    # Nothing is read of the files, whose sizes are not to cut the work into tasks.
    with settings(spark, {"spark.sql.files.maxPartitionBytes": str(2**62)}):
        found = listed.collect()
    rows = sorted(found, key=lambda row: (natural(row["path"]), row["path"]))
    for row in rows:
        _require_readable(row["path"], source)
    return [
        Delivered(first + n, row["path"], row["uri"], row["size"], row["modified"])
        for n, row in enumerate(rows)
    ]


def _list(spark: SparkSession, path: str) -> DataFrame:
    # A format that lists files, on whatever storage, and opens none of them unless asked to.
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
    return files.load(literal(path) if _is_there(path) else path).select(
        "path",
        F.col("_metadata.file_path").alias("uri"),
        F.col("length").alias("size"),
        F.unix_millis("modificationTime").alias("modified"),
    )


def _new_version(
    spark: SparkSession, path: str, known: DataFrame | None, first: int
) -> list[Delivered]:
    if not DeltaTable.isDeltaTable(spark, path):
        raise SourceError(f"{path} is no Delta table: mend the source's path or format")
    delta = DeltaTable.forPath(spark, path)
    version = int(delta.history(1).select("version").collect()[0][0])
    table = delta.detail().select("id").collect()[0][0]
    since = None
    if known is not None:
        same = known.where((F.col("path") == path) & (F.col("table_id") == table))
        since = same.agg(F.max_by("version", "source")).collect()[0][0]
    if version == since:
        return []
    if since is not None and version < since:  # put back from a copy, and written since
        since = None
    return [Delivered(first, path, version=version, table=table, since=since)]


def literal(path: str) -> str:
    r"""Return a path in which the characters of globs stand for themselves.

    >>> literal("clicks[1].csv")
    'clicks\\[1\\].csv'
    """
    return re.sub(r"([{}\[\]*?\\])", r"\\\1", path)


def _is_there(path: str) -> bool:
    """Tell whether a local path exists as it is written, and so is no glob."""
    return is_local(path) and os.path.exists(filesystem(path)[1])


def _require_readable(path: str, source: Source | CandidateSource) -> None:
    name = path.rpartition("/")[2]
    if ":" in name and is_local(path):
        raise SourceError(f"{path}: Spark reads no file whose name holds a colon: rename it")
    if is_text(source) and name.lower().endswith(_PACKED):
        raise SourceError(f"{path}: Spark unpacks .gz and .bz2; unpack it, or pack it so")


def _warn_of_hidden(path: str) -> None:
    """Name a file that Spark passes over though it is asked for; count those of a folder."""
    if not is_local(path):
        return
    local = filesystem(path)[1]
    if os.path.isfile(local) and is_hidden(os.path.basename(local)):
        raise SourceError(f"{path}: Spark reads no file whose name begins with _ or .: rename it")
    hidden = sum(
        is_hidden(name) and not _BESIDE.fullmatch(name)
        for folder, _, names in os.walk(local)
        if not any(map(is_hidden, os.path.relpath(folder, local).split("/")))
        for name in names
    )
    if hidden:
        log.warning(
            f"files of {path} whose names begin with _ or . are not read: rename them",
            extra={"files": hidden},
        )


def is_text(source: Source | CandidateSource) -> bool:
    """Tell whether the source is read line by line."""
    return source.format not in ("parquet", "delta")


def settings_hash(source: Source | CandidateSource) -> str:
    """Return a hash of how a source is read, by which its files are known to have been read so."""
    text = source.model_dump_json(exclude={"path"})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ledger_rows(
    spark: SparkSession, deliveries: Sequence[Delivered], kind: str, how: str
) -> DataFrame:
    """Return rows of table ``files`` but ``run_id``; ``how`` is their :func:`settings_hash`."""
    rows = [
        (d.source, kind, d.path, d.place, d.size, d.modified, d.version, how, d.table)
        for d in deliveries
    ]
    return spark.createDataFrame(
        rows,
        "source int, kind string, path string, place string, size bigint, modified bigint, "
        "version bigint, settings string, table_id string",
    )


def order_of_sources(files: DataFrame) -> DataFrame:
    """Return (source, source_order) of table ``files``: numbers in natural order of paths.

    A number names a file for good and follows the order of deliveries; this order depends on the
    paths alone. A handful of bytes a file, sorted in one task.
    """
    paths = files.select("place", "path").distinct()
    # Ordered by a collected array: a window over everything would warn of its one task.
    ordered = paths.agg(F.array_sort(F.collect_list(F.struct("place", "path"))).alias("ordered"))
    numbered = ordered.select(F.posexplode("ordered").alias("source_order", "file"))
    numbered = numbered.select("source_order", F.col("file.path").alias("path"))
    return files.select("source", "path").join(numbered, "path").select("source", "source_order")


def column_of(name: str) -> Column:
    """Return the column of this very name, whatever characters it has."""
    return F.col("`" + name.replace("`", "``") + "`")
