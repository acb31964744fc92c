"""Delivered files and tables as rows of strings, each with its raw text, source and line.

Parsing to types comes later, where a value that does not parse is put aside with a reason. Text
formats are read line by line (a quoted field can not span lines), so that the raw row and its
number are known even where the row is malformed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import reduce

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from recs.config import TIME_UNITS, CandidateSource, Source
from recs.data.files import Delivered, SourceError, column_of, is_text, literal
from recs.session import settings
from recs.storage import exists, filesystem, join

#: Columns beside the data's own that every reader gives.
RAW, SOURCE, LINE, REASON = "_raw", "_source", "_line", "_reason"

MALFORMED, BAD_ENCODING = "malformed", "bad_encoding"

_URI, _BLOCK = "_uri", "_block"

#: Files whose columns are asked for at the same time: each is a Spark job of one small task.
_SCHEMAS_AT_ONCE = 16


def read_rows(
    spark: SparkSession,
    source: Source | CandidateSource,
    deliveries: Sequence[Delivered],
    columns: Sequence[str],
    *,
    work: str,
    nested: Sequence[str] = (),
    numbers: Sequence[str] = (),
    dates: Sequence[str] = (),
) -> DataFrame:
    """Return columns of what was delivered as text, and where each row came from.

    Parameters
    ----------
    source
        How to read it.
    deliveries
        Files, or the one new version of a Delta table, from which rows come that were added since
        the version before.
    columns
        Columns of the data to keep. One that is in no file may be given by folders named
        ``column=value``.
    work
        A folder for working files; they are read until the rows are.
    nested
        Those of ``columns`` that may hold lists or records, which are kept as JSON.
    numbers
        Those in which NaN is a value; elsewhere it is how others write that there is none.
    dates
        Those in which a number says nothing, for nobody has said of what unit it is.

    Returns
    -------
    DataFrame
        ``columns``: text, trimmed by nobody; times that Parquet and Delta keep as such stay times.
        ``_raw``: the row as delivered, as JSON where it was no text. ``_source``: its number in
        table ``files``; ``_line``, from 0; ``_reason``: ``malformed``, ``bad_encoding`` or null.

    Raises
    ------
    SourceError
        If the data lacks one of ``columns``, a column is of a type that is neither text nor number,
        or files of one source differ in their header or in a column's type.
    """
    assert isinstance(source, Source)
    if is_text(source):
        return _text_rows(spark, source, deliveries, columns, nested, numbers)
    if source.format == "delta":
        loaded = _added(spark, source, deliveries[-1], work)
    else:
        loaded = _parquet(spark, source, deliveries, columns)
    _require(columns, loaded.columns, source)
    for name in dates:
        if isinstance(kind := loaded.schema[name].dataType, T.NumericType):
            raise SourceError(
                f"column {name!r} of {source.path} is {kind.simpleString()}: say what its numbers "
                f"are, as timestamp_format: {' or '.join(TIME_UNITS)}"
            )
    return _table_rows(loaded, source, columns, nested, numbers)


def read_lines(
    spark: SparkSession, source: CandidateSource, deliveries: Sequence[Delivered]
) -> DataFrame:
    """Return the lines of text files that are not empty: ``value`` and their place and reason."""
    return _numbered_lines(spark, source, deliveries).lines


def once(df: DataFrame, name: str, column: Column) -> DataFrame:
    """Add a column that is computed once a row, however many expressions and filters read it.

    Spark copies an expression to all its uses, which parses a line anew for each of its fields; it
    does not look through the generator that the column is put in here.
    """
    # Computed in a projection of its own, which Spark compiles; a generator's own input it may not.
    made = df.withColumn("_made", column)
    return made.withColumn(name, F.explode(F.array("_made"))).drop("_made")


# -- text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lines:
    """Lines (value, _source, _line, _reason), and the first line of each file."""

    lines: DataFrame
    heads: dict[str, str]


def _numbered_lines(
    spark: SparkSession, source: Source | CandidateSource, deliveries: Sequence[Delivered]
) -> _Lines:
    """Return the lines of files with their numbers, exact however Spark cuts files into blocks.

    Within a block lines come in order, so their running ids count them; how many lines lie in the
    blocks before is found in a first, cheap pass that yields one row a block.
    """
    paths = [literal(delivered.path) for delivered in deliveries]
    loaded = (
        spark.read.format("text")
        .load(paths)
        .select(
            "value",
            F.col("_metadata.file_path").alias(_URI),
            F.col("_metadata.file_block_start").alias(_BLOCK),
            F.monotonically_increasing_id().alias("_id"),
        )
    )
    # As bytes: what they mean is the source's to say.
    first = F.min_by(F.col("value").cast("binary"), "_id").alias("head")
    found = loaded.groupBy(_URI, _BLOCK).agg(
        F.min("_id").alias("least"), F.count("*").alias("lines"), first
    )
    by_uri = {delivered.uri: delivered for delivered in deliveries}
    offsets, heads = [], {}
    before = dict.fromkeys(by_uri, 0)
    for row in sorted(found.collect(), key=lambda row: (row[_URI], row[_BLOCK])):
        uri, delivered = row[_URI], by_uri[row[_URI]]
        if not before[uri]:
            heads[delivered.path] = row["head"].decode(source.encoding, errors="replace")
        offsets.append((uri, row[_BLOCK], delivered.source, before[uri] - row["least"]))
        before[uri] += row["lines"]
    schema = f"{_URI} string, {_BLOCK} bigint, {SOURCE} int, _offset bigint"
    # A left join: a block that the first pass has not seen is an error, and no loss.
    numbered = loaded.join(
        F.broadcast(spark.createDataFrame(offsets, schema)), [_URI, _BLOCK], "left"
    )
    line = F.coalesce(
        F.col("_id") + F.col("_offset"),
        F.raise_error(F.lit("files have changed while they were read: start the run again")),
    )
    value = F.col("value")
    bad = F.contains(value, F.lit("\0"))
    if source.encoding == "latin-1":
        # Spark reads text as UTF-8 but keeps the bytes, so they can still be decoded aright.
        value = F.decode(value.cast("binary"), "ISO-8859-1")
    else:
        bad = bad | ~F.is_valid_utf8(value)
    lines = numbered.select(
        value.alias("value"),
        SOURCE,
        line.alias(LINE),
        F.when(bad, F.lit(BAD_ENCODING)).alias(REASON),
    )
    return _Lines(lines.where(F.trim("value") != ""), heads)


def _text_rows(
    spark: SparkSession,
    source: Source,
    deliveries: Sequence[Delivered],
    columns: Sequence[str],
    nested: Sequence[str],
    numbers: Sequence[str],
) -> DataFrame:
    numbered = _numbered_lines(spark, source, deliveries)
    lines = numbered.lines
    given = _given_by_folders(columns, deliveries)
    options = {"columnNameOfCorruptRecord": "_malformed"}
    if source.format == "jsonl":
        fields = [*columns, "_malformed"]
        schema = T.StructType([T.StructField(name, T.StringType()) for name in fields])
        parsed = F.from_json("value", schema, options)
        place = {name: name for name in columns}
    else:
        names = source.fields or _header(numbered.heads, source)
        given = [name for name in given if name not in names]
        # A first line that is no header is somebody's, and not told.
        names_of = "`fields`" if source.fields else "the first line"
        told = (
            f": {names_of} names {len(names)} columns, and none so; mend the column names of the "
            "source in the config, or give `fields` where files have no header"
        )
        _require(columns, [*names, *given], source, told)
        for name in columns:
            if names.count(name) > 1:
                raise SourceError(
                    f"{source.path} has {names.count(name)} columns {name!r}: name all of them, "
                    "each another, in `fields` of the source"
                )
        # By their numbers: names may differ in case alone, which Spark does not tell apart.
        place = {name: f"c{names.index(name)}" for name in columns if name in names}
        ddl = ", ".join([*(f"c{n} string" for n in range(len(names))), "_malformed string"])
        # RFC 4180: a quote within quotes is doubled. Spark's own escape is a backslash.
        options |= {"sep": source.separator, "quote": source.quote, "escape": source.quote}
        parsed = F.from_csv("value", F.lit(ddl), options)
        if source.fields is None:
            lines = lines.where(F.col(LINE) > 0)
    lines = once(lines, "_fields", parsed)
    malformed = F.col("_fields").isNull() | F.col("_fields").getField("_malformed").isNotNull()
    values = {name: F.col("_fields").getField(field) for name, field in place.items()}
    if source.format == "jsonl":
        for name in columns:
            if name not in nested:
                malformed |= _json_kind(name, values[name]).rlike("^(ARRAY|OBJECT)")
                values[name] = _json_scalar(name, values[name], name in numbers)
    if given:
        folders = _folders(spark, deliveries, given).drop(_URI)
        lines = lines.join(F.broadcast(folders), SOURCE)
        for n, name in enumerate(given):
            values[name] = F.coalesce(values.get(name, F.lit(None)), F.col(f"_folder{n}"))
    kept = [values[name].alias(name) for name in columns]
    # Of a row in another encoding each byte is kept as the character of its number.
    bytes_as_text = F.decode(F.col("value").cast("binary"), "ISO-8859-1")
    return lines.select(
        *kept,
        F.when(F.col(REASON).isNull(), F.col("value")).otherwise(bytes_as_text).alias(RAW),
        SOURCE,
        LINE,
        F.coalesce(REASON, F.when(malformed, F.lit(MALFORMED))).alias(REASON),
    )


def _header(heads: dict[str, str], source: Source) -> list[str]:
    """Return the column names that the first line of every file agrees on."""
    if not heads:
        raise SourceError(f"{source.path} holds no lines; its header was expected")
    files = sorted(heads)
    for file in files[1:]:
        if heads[file] != heads[files[0]]:
            raise SourceError(
                f"files of one source have different headers: the first lines of {files[0]} and "
                f"{file} differ; give them as two sources, or name the columns in `fields`"
            )
    text = heads[files[0]].lstrip("\ufeff")
    for sign, what in (("PK\x03\x04", "a zip file"), ("\x1f", "a packed file"), ("\0", "UTF-16")):
        if sign in text[:64]:
            raise SourceError(
                f"{files[0]} looks like {what}: save it as plain UTF-8, or as .gz or .bz2 by name"
            )
    if len(source.separator) > 1:
        return [name.strip().strip(source.quote) for name in text.split(source.separator)]
    if not source.quote:
        return [name.strip() for name in text.split(source.separator)]
    parsed = csv.reader([text], delimiter=source.separator, quotechar=source.quote)
    return [name.strip() for name in next(parsed)]


#: A JSON value of which its text does not tell what it is: a list, a record, a number with a point.
_JSON_UNCLEAR = r"^[\[{]|^-?[0-9]+\.[0-9]+(E-?[0-9]+)?$"


def _json_kind(name: str, text: Column) -> Column:
    """Return the type of a field of the row ``value``, as Spark names it, where it is unclear."""
    parsed = F.try_parse_json("value").cast("map<string,variant>")
    return F.when(text.rlike(_JSON_UNCLEAR), F.schema_of_variant(parsed.getItem(name)))


def _json_scalar(name: str, text: Column, nan_is_a_value: bool) -> Column:
    """Return a text or number of JSON as text; whole numbers are written as integers."""
    # Spark writes these words, which are no JSON, with the quotes of a text.
    special = text.isin('"NaN"', '"Infinity"', '"-Infinity"')
    text = F.when(special, F.translate(text, '"', "")).otherwise(text)
    if nan_is_a_value:
        return text
    number = text.try_cast("double")
    whole = (number == F.floor(number)) & (F.abs(number) <= _EXACT[T.DoubleType])
    pointed = _json_kind(name, text).rlike("^(DOUBLE|FLOAT|DECIMAL)")
    text = F.when(pointed & whole, number.cast("bigint").cast("string")).otherwise(text)
    return F.when(text != "NaN", text)


# -- folders --------------------------------------------------------------------------------------


def _given_by_folders(columns: Sequence[str], deliveries: Sequence[Delivered]) -> list[str]:
    """Return the columns that folders named ``column=value`` give."""
    return [name for name in columns if any(name in d.partitions for d in deliveries)]


def _folders(
    spark: SparkSession, deliveries: Sequence[Delivered], names: Sequence[str]
) -> DataFrame:
    """Return a row a file: _uri, _source, and ``_folder0`` … of what its folders say."""
    rows = [(d.uri, d.source, *(d.partitions.get(name) for name in names)) for d in deliveries]
    fields = [
        (_URI, T.StringType()),
        (SOURCE, T.IntegerType()),
        *((f"_folder{n}", T.StringType()) for n in range(len(names))),
    ]
    table = T.StructType([T.StructField(name, kind) for name, kind in fields])
    return spark.createDataFrame(rows, table)


# -- tables ---------------------------------------------------------------------------------------


def _parquet(
    spark: SparkSession, source: Source, deliveries: Sequence[Delivered], columns: Sequence[str]
) -> DataFrame:
    """Return Parquet files whole, with what their folders say, their numbers and rows' places."""
    paths = [literal(delivered.path) for delivered in deliveries]
    schema = _schema_of(spark, source, paths, columns)
    loaded = spark.read.schema(schema).parquet(*paths)
    times = _in_nanoseconds(spark, deliveries, schema, columns)
    loaded = loaded.withColumns({n: F.timestamp_micros(micros_of(column_of(n))) for n in times})
    given = [n for n in _given_by_folders(columns, deliveries) if n not in loaded.columns]
    names = loaded.columns
    loaded = loaded.select(
        *[column_of(name) for name in names],
        F.col("_metadata.file_path").alias(_URI),
        F.col("_metadata.row_index").alias(LINE),
    )
    if not given and len(deliveries) == 1:
        return loaded.drop(_URI).withColumn(SOURCE, F.lit(deliveries[0].source))
    joined = loaded.join(F.broadcast(_folders(spark, deliveries, given)), _URI)
    return joined.select(
        *[column_of(name) for name in names],
        *[F.col(f"_folder{n}").alias(name) for n, name in enumerate(given)],
        LINE,
        SOURCE,
    )


def _in_nanoseconds(
    spark: SparkSession,
    deliveries: Sequence[Delivered],
    schema: T.StructType,
    columns: Sequence[str],
) -> set[str]:
    """Return the columns that are times in nanoseconds, as pandas writes them: numbers to Spark."""
    longs = {f.name for f in schema if isinstance(f.dataType, T.LongType)} & set(columns)
    kinds: dict[str, bool] = {}
    for delivered in deliveries:
        if longs <= set(kinds):  # after the first file, but for columns that it does not have
            break
        kinds = _are_in_nanoseconds(spark, delivered) | kinds
    return {name for name in longs if kinds.get(name)}


def _are_in_nanoseconds(spark: SparkSession, delivered: Delivered) -> dict[str, bool]:
    """Tell of each column of a file whether it is a time in nanoseconds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Spark refuses a file with such columns where it is not told to take them as numbers, but does
    # not say which they are. Other files are left to Spark, which alone may reach the storage.
    with settings(spark, {"spark.sql.legacy.parquet.nanosAsLong": "false"}):
        try:
            return dict.fromkeys(spark.read.parquet(literal(delivered.path)).columns, False)
        except (PySparkException, Py4JJavaError) as error:
            if "NANOS" not in str(error):
                raise
    fs, path = filesystem(delivered.path)
    with fs.open(path, "rb") as file:
        schema = pq.read_schema(file)
    return {f.name: pa.types.is_timestamp(f.type) and f.type.unit == "ns" for f in schema}


def micros_of(nanoseconds: Column) -> Column:
    """Return whole microseconds as bigint, rounded down; a double would not hold all digits."""
    thousand = F.lit(1000).cast("bigint")
    whole = F.call_function("div", nanoseconds, thousand)  # towards 0
    return whole - F.when((nanoseconds < 0) & (nanoseconds % thousand != 0), 1).otherwise(0)


def _schema_of(
    spark: SparkSession, source: Source, paths: Sequence[str], columns: Sequence[str]
) -> T.StructType:
    """Return the columns of all files; what only some of them have is null in the others."""
    try:
        return spark.read.option("mergeSchema", "true").parquet(*paths).schema
    except (PySparkException, Py4JJavaError) as error:
        if "CANNOT_MERGE" not in str(error):
            raise
    # Files differ in a column's type. Those that nobody asks for do not matter.
    kinds: dict[str, tuple[T.DataType, str]] = {}
    with ThreadPoolExecutor(_SCHEMAS_AT_ONCE) as threads:
        schemas = list(threads.map(lambda path: spark.read.parquet(path).schema, paths))
    for path, schema in zip(paths, schemas, strict=True):
        for kept in schema:
            if kept.name not in columns:
                continue
            kind, file = kinds.setdefault(kept.name, (kept.dataType, path))
            if kind != kept.dataType:
                raise SourceError(
                    f"column {kept.name!r} is {kind.simpleString()} in {file} and "
                    f"{kept.dataType.simpleString()} in {path}: give them as two sources, or write "
                    "one of them anew"
                )
    return T.StructType([T.StructField(name, kind) for name, (kind, _) in kinds.items()])


def _added(spark: SparkSession, source: Source, delivered: Delivered, work: str) -> DataFrame:
    """Return the rows that a Delta table got since the version before, each with a number."""
    reader = spark.read.format("delta").option("versionAsOf", delivered.version)
    loaded = reader.load(delivered.path)
    if delivered.since is not None:
        loaded = _between(spark, source, delivered, work)
    # A Delta table does not number its rows: a hash of the row breaks ties of time instead.
    hashed = [
        F.to_json(column_of(field.name))
        if isinstance(field.dataType, T.MapType | T.ArrayType | T.StructType)
        else column_of(field.name).cast("string")
        for field in loaded.schema
    ]
    marked = [F.coalesce(column, F.lit("\0")) for column in hashed]
    number = F.xxhash64(*marked).bitwiseAND(2**63 - 1)
    return loaded.select(
        *[column_of(name) for name in loaded.columns],
        number.alias(LINE),
        F.lit(delivered.source).alias(SOURCE),
    )


def _between(spark: SparkSession, source: Source, delivered: Delivered, work: str) -> DataFrame:
    """Return the rows appended after one version of a Delta table up to another.

    A stream of the table's commits writes them to ``work``, from where they are read as often as
    one likes; Delta has no other way to read them that every table allows.
    """
    assert delivered.since is not None
    options = {"startingVersion": str(delivered.since + 1)}
    if source.changes == "skip":
        options["skipChangeCommits"] = "true"
    stream = spark.readStream.format("delta").options(**options).load(delivered.path)
    schema = stream.schema
    folder, checkpoint = join(work, "rows"), join(work, "checkpoint")
    written = stream.writeStream.format("parquet").option("checkpointLocation", checkpoint)
    query = written.option("path", folder).trigger(availableNow=True).start()
    try:
        query.awaitTermination()
    except PySparkException as error:
        raise _explained(error, delivered) from error
    if not exists(folder):  # no commit in between has added a row
        return spark.createDataFrame([], schema)
    return spark.read.schema(schema).parquet(folder)


def _explained(error: PySparkException, delivered: Delivered) -> Exception:
    text = str(error)
    if "IGNORE_CHANGES" in text or "IGNORE_DELETE" in text or "SOURCE_TABLE" in text:
        return SourceError(
            f"{delivered.path} was changed or had rows deleted after version {delivered.since}, "
            "and events are only ever added: say `changes: skip` of the source, which passes such "
            "commits over"
        )
    if "SCHEMA" in text or "COLUMN_MAPPING" in text:
        return SourceError(
            f"{delivered.path} had columns renamed, dropped or changed after version "
            f"{delivered.since}: give the lake another root, which reads the table whole"
        )
    return error


def _table_rows(
    loaded: DataFrame,
    source: Source,
    columns: Sequence[str],
    nested: Sequence[str],
    numbers: Sequence[str],
) -> DataFrame:
    data = [name for name in loaded.columns if name not in (SOURCE, LINE)]
    kinds = {field.name: field.dataType for field in loaded.schema}
    kept = [
        _as_text(name, kinds[name], source, name in nested, name in numbers).alias(name)
        for name in columns
    ]
    bad = [
        ~F.is_valid_utf8(column_of(name).cast("string"))
        for name in columns
        if isinstance(kinds[name], T.BinaryType)
    ]
    any_bad = reduce(Column.__or__, bad, F.lit(False))
    return loaded.select(
        *kept,
        F.to_json(F.struct(*map(column_of, data))).alias(RAW),
        SOURCE,
        LINE,
        F.when(any_bad, F.lit(BAD_ENCODING)).alias(REASON),
    )


#: Whole numbers that a floating-point type holds are exact up to here.
_EXACT: dict[type[T.DataType], float] = {T.DoubleType: 2.0**53, T.FloatType: 2.0**24}


def _as_text(
    name: str, kind: T.DataType, source: Source, may_nest: bool, nan_is_a_value: bool
) -> Column:
    """Return a typed column as text; times stay times.

    Whole floating-point numbers are written as integers: pandas turns integers beside a missing one
    into such.
    """
    column = column_of(name)
    if isinstance(kind, T.TimestampType | T.TimestampNTZType | T.DateType):
        return column.cast("timestamp")
    if type(kind) in _EXACT:
        whole = (column == F.floor(column)) & (F.abs(column) <= _EXACT[type(kind)])
        text = F.when(whole, column.cast("bigint").cast("string")).otherwise(column.cast("string"))
        return text if nan_is_a_value else F.when(~F.isnan(column), text)
    if isinstance(kind, T.BinaryType):
        return F.try_validate_utf8(column.cast("string"))
    if not isinstance(kind, T.ArrayType | T.MapType | T.StructType):
        return column.cast("string")
    if may_nest:
        return F.to_json(column)
    raise SourceError(
        f"column {name!r} of {source.path} is {kind.simpleString()}, where a text or a number is "
        "needed: name another column, or write one of its fields to a column of its own"
    )


def moment_of(moment: datetime) -> Column:
    """Return a time in UTC as a column."""
    return F.lit(moment.strftime("%Y-%m-%d %H:%M:%S")).cast("timestamp")


def _require(wanted: Sequence[str], found: Sequence[str], source: Source, told: str = "") -> None:
    """Refuse data without a column; ``told`` is said of it in place of the columns there are."""
    missing = [name for name in wanted if name not in found]
    if missing:
        there = (
            f"; it has {', '.join(map(str, found))}: mend the column names of the source in the "
            "config"
        )
        raise SourceError(f"{source.path} has no column {missing[0]!r}{told or there}")
