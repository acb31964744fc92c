"""Tables → a training set that ranks read without Spark: see :mod:`recs.training.dataset`."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from recs.arrays.files import write_vectors
from recs.arrays.lists import read_lists, right_aligned
from recs.arrays.matrix import write_csr
from recs.arrays.streams import whole_runs
from recs.errors import UserError
from recs.schema import PADDING, SEQUENCE_ARRAYS
from recs.storage import filesystem, join
from recs.training.dataset import POSITIVES_FOLDER, Manifest, TrainingSet, write_manifest
from recs.training.plan import File, lengths_up_to

if TYPE_CHECKING:
    import pyarrow as pa

#: Numbers in a column of a file, about: 4 MiB.
_FILE_NUMBERS = 2**20
# Rows are numbered in so many parts of each length, each sorted by a task.
_SLICES = 256

# Of columns that compress well; the others have none.
_CODECS = {f"{name}.list.element": "lz4" for name in ("event_types", "gaps")}

_WRITTEN = "file int, name string, rows bigint, columns string"


def export(
    sequences: DataFrame,
    validation: DataFrame,
    user_positives: DataFrame,
    catalogue: DataFrame,
    folder: str,
    *,
    tables: Mapping[str, int],
    num_users: int,
    num_items: int,
    event_type_ids: Mapping[str, int],
    positive: Sequence[str],
    length: int,
    lanes: int,
    seed: int,
) -> TrainingSet:
    """Write a training set under ``folder``.

    A row's file and its place there depend on the seed and the row alone. The driver holds a line a
    file and 256 numbers a length; a task holds the rows of one file.

    Parameters
    ----------
    sequences
        Rows of table ``sequences`` to train on.
    validation
        The same columns, null of users without a history, and ``target`` int: the item that comes
        next. It is read three times.
    user_positives
        user_id, items array<int>: never drawn as the user's negatives.
    catalogue
        item_id, train_events, recommendable.
    tables
        Delta version of each table that these come from.
    event_type_ids, positive
        Number of each event type, and the types whose items are asked for.
    length
        L: the last events of a history that are read.
    lanes
        At least the processes that will ever train on it, and a multiple of them.
    seed
        Another seed, other places.

    Raises
    ------
    UserError
        If there is nothing to train on.
    """
    parts, columns = {}, ""
    measured = validation.where("items IS NOT NULL")
    for part, rows in (("train", sequences), ("validation", measured)):
        parts[part], found = _write(rows, part, folder, length, lanes, seed)
        columns = columns or found
    if not any(file.rows for file in parts["train"]):
        raise UserError("there are no sequences to train on: run the stages split and sequences")
    pairs = user_positives.select("user_id", F.explode("items").alias("item_id"))
    write_csr(
        pairs,
        join(folder, POSITIVES_FOLDER),
        row="user_id",
        column="item_id",
        shape=(num_users, num_items),
    )
    kinds = {"train_events": "int64", "recommendable": "bool"}
    vectors = write_vectors(catalogue, folder, num_items, kinds)
    names = {name: uri.rpartition("/")[2] for name, uri in vectors.items()}
    return write_manifest(
        folder,
        Manifest(
            tables=dict(tables),
            num_users=num_users,
            num_items=num_items,
            num_event_types=max(event_type_ids.values()) + 1,
            length=length,
            lanes=lanes,
            positive_event_types=sorted(event_type_ids[name] for name in positive),
            schema_hash=hashlib.sha256(columns.encode()).hexdigest()[:16],
            train_events=names["train_events"],
            recommendable=names["recommendable"],
            parts=parts,
            given_nothing=validation.where("items IS NULL").count(),
        ),
    )


def with_targets(
    sequences: DataFrame, interactions: DataFrame, user_positives: DataFrame
) -> DataFrame:
    """Return the first positive event of validation, and each user's newest training sequence.

    Where splits follow time, that comes before it. It is null of users who have wanted nothing in
    training, to whom no model gives anything.
    """
    wanted = user_positives.where("size(items) > 0").select("user_id")
    newest = Window.partitionBy("user_id").orderBy(F.desc("last"))
    histories = sequences.withColumn("_newest", F.row_number().over(newest))
    held_out = interactions.where(F.col("positive") & (F.col("split") == "validation"))
    targets = held_out.groupBy("user_id").agg(F.min_by("item_id", "sequence").alias("target"))
    histories = histories.where("_newest = 1").drop("_newest").join(wanted, "user_id", "left_semi")
    return targets.join(histories, "user_id", "left")


def _write(
    rows: DataFrame, part: str, folder: str, longest: int, lanes: int, seed: int
) -> tuple[list[File], str]:
    """Write the files of a part; return them and what their columns are."""
    numbers = [name for name in ("user_id", "length", "target") if name in rows.columns]
    lengths = lengths_up_to(longest)
    bucket = F.lit(0)
    for number, length in enumerate(lengths[:-1]):
        bucket = F.when(F.col("length") > length, number + 1).otherwise(bucket)
    key = F.xxhash64(F.lit(seed), "user_id", "last")
    keyed = rows.select(
        *numbers,
        *SEQUENCE_ARRAYS,
        bucket.alias("bucket"),
        key.alias("key"),
        F.pmod(key, F.lit(_SLICES)).cast("int").alias("slice"),
    )
    counted = keyed.groupBy("bucket", "slice").count().collect()
    if not counted:
        return [], ""
    counts = np.zeros((len(lengths), _SLICES), np.int64)
    for row in counted:
        counts[row["bucket"], row["slice"]] = row["count"]
    files = _files_of(counts.sum(axis=1), lengths, lanes)
    placed = keyed.withColumn("file", _file(counts, files))
    width = dict(enumerate(_lengths_of(files, lengths)))
    written = placed.repartition("file").sortWithinPartitions("file", "key", "user_id", "length")

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for file, table in whole_runs(batches, "file"):
            made = _table(table, numbers, width[file])
            name = f"{part}-{file:06d}-{uuid.uuid4().hex[:8]}.parquet"
            _save(made, join(folder, name))
            yield pa.RecordBatch.from_pydict(
                {
                    "file": pa.array([file], pa.int32()),
                    "name": [name],
                    "rows": [made.num_rows],
                    "columns": [str(made.schema)],
                }
            )

    done = {row["file"]: row for row in written.mapInArrow(write, _WRITTEN).collect()}
    listed = [
        File(done[n]["name"], done[n]["rows"], width[n]) if n in done else File("", 0, width[n])
        for n in range(len(width))
    ]
    return listed, next(iter(done.values()))["columns"]


def _files_of(rows: np.ndarray, lengths: list[int], lanes: int) -> np.ndarray:
    """Return the number of files of each length, a multiple of the lanes; 0 where no rows are."""
    largest = np.maximum(1, _FILE_NUMBERS // np.array(lengths))
    return lanes * -(-rows // (lanes * largest))


def _lengths_of(files: np.ndarray, lengths: list[int]) -> list[int]:
    return np.repeat(lengths, files).tolist()


def _file(counts: np.ndarray, files: np.ndarray) -> Column:
    """Return a row's file: rows of a length are numbered in the order of their keys and dealt."""
    before = np.cumsum(counts, axis=1) - counts
    first = np.cumsum(files) - files
    offsets = F.array(*(F.lit(int(n)) for n in before.ravel()))
    within = Window.partitionBy("bucket", "slice").orderBy("key", "user_id", "length")
    at = F.col("bucket") * _SLICES + F.col("slice")
    number = F.get(offsets, at) + F.row_number().over(within) - 1

    def of_bucket(values: np.ndarray) -> Column:
        return F.get(F.array(*(F.lit(int(n)) for n in values)), F.col("bucket"))

    return (of_bucket(first) + number % of_bucket(files)).cast("int")


def _table(table: pa.Table, numbers: Sequence[str], length: int) -> pa.Table:
    """Return a file's columns, arrays as their last ``length`` entries, padded on the left."""
    import pyarrow as pa

    fields, columns = [], []
    for name in numbers:
        fields.append(pa.field(name, pa.int32(), nullable=False))
        columns.append(table.column(name).cast(pa.int32()).combine_chunks())
    (batch,) = table.combine_chunks().to_batches()
    for name in SEQUENCE_ARRAYS:
        kept = right_aligned(read_lists(batch, name), length, 0 if name == "gaps" else PADDING)
        offsets = np.arange(table.num_rows + 1, dtype=np.int32) * length
        # Without nulls there are fewer levels to decode.
        kind = pa.list_(pa.field("element", pa.int32(), nullable=False))
        fields.append(pa.field(name, kind, nullable=False))
        values = pa.ListArray.from_arrays(pa.array(offsets), pa.array(kept.ravel()))
        columns.append(values.cast(kind))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _save(table: pa.Table, uri: str) -> None:
    """Write a file of one row group, each column a page: more of them would only take time.

    Nor would a dictionary serve ids, which hardly repeat.
    """
    import pyarrow.parquet as pq

    fs, path = filesystem(uri)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    with fs.open(path, "wb") as file:
        pq.write_table(
            table,
            file,
            row_group_size=max(1, table.num_rows),
            use_dictionary=False,
            compression=_CODECS,
            data_page_size=max(1, table.nbytes),
            write_statistics=False,
        )
