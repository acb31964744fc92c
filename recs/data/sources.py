"""Delivered files and tables as rows of strings, each with its raw text, source and line.

Parsing to types comes later, where a value that does not parse is put aside with a reason. Text
formats are read line by line (a quoted field can not span lines), so that the raw row and its
number are known even where the row is malformed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import datetime

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from recs.config import CandidateSource, Source
from recs.errors import UserError

#: Columns beside the data's own that every reader gives.
RAW, SOURCE, LINE, MALFORMED = "_raw", "_source", "_line", "_malformed"

_TEXT_FORMATS = ("csv", "jsonl")
_BLOCK = "_block"

#: A first delivery of years of logs is taken in batches of this size, not all at once.
_BYTES_PER_BATCH = 8 * 2**30

#: Spark never reads a new file that is a week older than the newest one it has read: an archive
#: that keeps its times, copied in late, would be passed over in silence.
_ANY_AGE = "36500d"


class SourceError(UserError):
    """Delivered data whose form is not what the configuration says."""


def is_text(source: Source | CandidateSource) -> bool:
    """Tell whether the source is read line by line."""
    return source.format not in ("parquet", "delta")


def open_batch(spark: SparkSession, source: Source | CandidateSource, path: str) -> DataFrame:
    """Return all of a source as delivered, with its place; see :func:`rows`."""
    reader = spark.read.option("recursiveFileLookup", "true")
    loaded = reader.format("text" if is_text(source) else source.format).load(path)
    return _with_place(source, loaded, path)


def open_stream(spark: SparkSession, source: Source, path: str) -> DataFrame:
    """Return a source as a stream of what is new in it; its batches go to :func:`rows`."""
    reader = spark.readStream
    if source.format == "delta":
        return _with_place(source, reader.format("delta").load(path), path)
    reader = reader.options(
        recursiveFileLookup=True, maxBytesPerTrigger=_BYTES_PER_BATCH, maxFileAge=_ANY_AGE
    )
    if is_text(source):
        return _with_place(source, reader.format("text").load(path), path)
    schema = spark.read.option("recursiveFileLookup", "true").parquet(path).schema
    return _with_place(source, reader.schema(schema).parquet(path), path)


def _with_place(source: Source | CandidateSource, loaded: DataFrame, path: str) -> DataFrame:
    if is_text(source):
        block = F.col("_metadata.file_block_start").alias(_BLOCK)
        return loaded.select("value", F.col("_metadata.file_path").alias(SOURCE), block)
    if source.format == "parquet":
        place = F.col("_metadata.file_path").alias(SOURCE), F.col("_metadata.row_index").alias(LINE)
        return loaded.select("*", *place)
    # A Delta table does not number its rows: a hash of the row breaks ties of time instead.
    number = F.xxhash64(F.to_json(F.struct(*loaded.columns))).bitwiseAND(2**63 - 1)
    return loaded.select("*", F.lit(path).alias(SOURCE), number.alias(LINE))


def rows(batch: DataFrame, source: Source, columns: Sequence[str]) -> DataFrame:
    """Return the wanted columns of opened data as strings, and where each row came from.

    Parameters
    ----------
    batch
        What :func:`open_batch` gave, or a micro-batch of :func:`open_stream`.
    source
        How to read it.
    columns
        Columns of the data to keep.

    Returns
    -------
    DataFrame
        ``columns`` (string), ``_raw``, ``_source``, ``_line`` (from 0) and ``_malformed``.

    Raises
    ------
    SourceError
        If the data lacks one of ``columns``, or files of one source have different headers.
    """
    if not is_text(source):
        _require(columns, batch.columns, source)
        kept = [column_of(name).cast("string").alias(name) for name in columns]
        data = [name for name in batch.columns if name not in (SOURCE, LINE)]
        raw = F.to_json(F.struct(*data)).alias(RAW)
        return batch.select(*kept, raw, SOURCE, LINE, F.lit(False).alias(MALFORMED))
    lines = _numbered(batch)
    if source.encoding == "latin-1":
        # Spark reads text as UTF-8 but keeps the bytes, so they can still be decoded aright.
        lines = lines.withColumn("value", F.decode(F.col("value").cast("binary"), "ISO-8859-1"))
    options = {"columnNameOfCorruptRecord": MALFORMED}
    if source.format == "jsonl":
        names = [*columns, MALFORMED]
        schema = T.StructType([T.StructField(name, T.StringType()) for name in names])
        parsed = F.from_json("value", schema, options)
    else:
        fields = source.fields or _header(lines, source)
        _require(columns, fields, source)
        ddl = ", ".join(f"`{name.replace('`', '``')}` string" for name in [*fields, MALFORMED])
        # RFC 4180: a quote within quotes is doubled. Spark's own escape is a backslash.
        options |= {"sep": source.separator, "quote": source.quote, "escape": source.quote}
        parsed = F.from_csv("value", ddl, options)
        if source.fields is None:
            lines = lines.where(F.col(LINE) > 0)
    lines = once(lines.where(F.trim("value") != ""), "_fields", parsed)
    kept = [F.col("_fields").getField(name).alias(name) for name in columns]
    malformed = F.col("_fields").isNull() | F.col("_fields").getField(MALFORMED).isNotNull()
    return lines.select(*kept, F.col("value").alias(RAW), SOURCE, LINE, malformed.alias(MALFORMED))


def once(df: DataFrame, name: str, column: Column) -> DataFrame:
    """Add a column that is computed once a row, however many expressions and filters read it.

    Spark copies an expression to all its uses, which parses a line anew for each of its fields; it
    does not look through the generator that the column is put in here.
    """
    # Computed in a projection of its own, which Spark compiles; a generator's own input it may not.
    made = df.withColumn("_once", column)
    return made.withColumn(name, F.explode(F.array("_once"))).drop("_once")


def _numbered(batch: DataFrame) -> DataFrame:
    """Add each line's number in its file, exact however Spark cuts the file into blocks.

    Within a block lines come in order, so their running ids count them; the numbers of lines in the
    blocks before are summed from a first, cheap pass that yields one row a block.
    """
    running = batch.withColumn("_id", F.monotonically_increasing_id())
    blocks = running.groupBy(SOURCE, _BLOCK).agg(
        F.min("_id").alias("_first"), F.count("*").alias("_lines")
    )
    before = Window.partitionBy(SOURCE).orderBy(_BLOCK).rowsBetween(Window.unboundedPreceding, -1)
    offsets = blocks.select(
        SOURCE,
        _BLOCK,
        (F.coalesce(F.sum("_lines").over(before), F.lit(0)) - F.col("_first")).alias("_offset"),
    )
    numbered = running.join(F.broadcast(offsets), [SOURCE, _BLOCK])
    return numbered.select("value", SOURCE, (F.col("_id") + F.col("_offset")).alias(LINE))


def _header(lines: DataFrame, source: Source) -> list[str]:
    """Return the column names that the first line of every file agrees on."""
    heads = (
        lines.where(F.col(LINE) == 0)
        .groupBy("value")
        .agg(F.min(SOURCE).alias("file"))
        .orderBy("value")
        .limit(2)
        .collect()
    )
    if len(heads) > 1:
        raise SourceError(
            f"files of one source have different headers: {heads[0]['file']} has "
            f"{heads[0]['value']!r}, {heads[1]['file']} has {heads[1]['value']!r}; "
            "give them as two sources, or name the columns in `fields`"
        )
    if not heads:
        raise SourceError(f"{source.path} holds no lines; its header was expected")
    text = heads[0]["value"].lstrip("\ufeff")
    if len(source.separator) > 1:
        return [name.strip() for name in text.split(source.separator)]
    return [name.strip() for name in next(csv.reader([text], delimiter=source.separator))]


def column_of(name: str) -> Column:
    """Return the column of this very name, whatever characters it has."""
    return F.col("`" + name.replace("`", "``") + "`")


def moment_of(moment: datetime) -> Column:
    """Return a time in UTC as a column."""
    return F.lit(moment.strftime("%Y-%m-%d %H:%M:%S")).cast("timestamp")


def _require(wanted: Sequence[str], found: Sequence[str], source: Source) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SourceError(
            f"{source.path} has no column {missing[0]!r}; it has {', '.join(map(str, found))}: "
            "mend the column names of the source in the config"
        )
