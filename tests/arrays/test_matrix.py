"""Sparse matrices as files: what is written is read, in any partitioning, or refused by name."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from recs.arrays import matrix
from recs.arrays.matrix import CsrFiles, MatrixError, map_cached, write_csr

pytestmark = pytest.mark.planner

ENTRIES = [(0, 2, 1.5), (0, 0, 2.0), (3, 1, 0.5), (4, 0, 1.0), (4, 2, 3.0)]
SCHEMA = "r int, c int, v double"


def dense(files: CsrFiles) -> np.ndarray:
    found = files.open()
    out = np.zeros(found.shape, np.float32)
    rows = np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))
    out[rows, found.indices] = 1 if found.data is None else found.data
    return out


@pytest.mark.parametrize("blocks", [1, 2, 5, 9])
def test_round_trip_in_any_number_of_blocks(
    spark: SparkSession, tmp_path: Path, blocks: int
) -> None:
    df = spark.createDataFrame(ENTRIES[::-1], SCHEMA).repartition(3)
    files = write_csr(
        df, str(tmp_path), row="r", column="c", value="v", shape=(6, 3), blocks=blocks
    )
    found = pickle.loads(pickle.dumps(files)).open()
    assert found.indptr.tolist() == [0, 2, 2, 2, 3, 5, 5]
    assert found.indices.tolist() == [0, 2, 1, 0, 2]
    assert found.data is not None and found.data.tolist() == [2.0, 1.5, 0.5, 1.0, 3.0]
    assert not found.indices.flags.writeable
    assert files.manifest["nnz"] == 5 and files.manifest["shape"] == [6, 3]


def test_csc_is_the_csr_of_swapped_columns(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.createDataFrame(ENTRIES, SCHEMA)
    by_row = write_csr(df, str(tmp_path / "r"), row="r", column="c", value="v", shape=(5, 3))
    by_column = write_csr(df, str(tmp_path / "c"), row="c", column="r", value="v", shape=(3, 5))
    np.testing.assert_array_equal(dense(by_row).T, dense(by_column))


def test_a_matrix_of_ones_has_no_values(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.createDataFrame([(r, c, 1.0) for r, c, _ in ENTRIES], SCHEMA)
    given = write_csr(df, str(tmp_path / "a"), row="r", column="c", value="v", shape=(5, 3))
    implied = write_csr(df, str(tmp_path / "b"), row="r", column="c", shape=(5, 3))
    assert given.open().data is None and implied.open().data is None
    np.testing.assert_array_equal(dense(given), dense(implied))


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_repeats_are_one_entry_in_any_order_and_batches(
    spark: SparkSession, tmp_path: Path, weighted: bool, blocks: int
) -> None:
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 40, 500) ** 2 // 40, rng.integers(0, 6, 500)
    values = rng.random(500).astype(np.float32)
    expected = np.zeros((40, 6))
    for n in np.argsort(values):
        expected[rows[n], columns[n]] += values[n] if weighted else 0
    if not weighted:
        expected[rows, columns] = 1
    entries = list(zip(rows.tolist(), columns.tolist(), values.tolist(), strict=True))
    limit = spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") or ""
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 7)
    try:
        for given in (entries, entries[::-1]):
            files = write_csr(
                spark.createDataFrame(given, SCHEMA).repartition(3),
                str(tmp_path),
                row="r",
                column="c",
                value="v" if weighted else None,
                shape=(40, 6),
                merge_repeats=True,
                blocks=blocks,
            )
            np.testing.assert_array_equal(dense(files), expected.astype(np.float32))
            assert files.manifest["nnz"] == np.count_nonzero(expected)
    finally:
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", limit)


@pytest.mark.parametrize("size", [1, 5, 100])
@pytest.mark.parametrize("height", [1, 4, 30])
def test_shards_hold_whole_rows_and_not_much_more_than_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, height: int
) -> None:
    monkeypatch.setattr(matrix, "_SHARD_ENTRIES", size)
    pairs = [(row, column) for row in (0, 1, 2, 9, 10, 11, 29) for column in range(0, 14, 1 + row)]
    keys = pa.table({"key": [row << 32 | column for row, column in pairs]})
    write = matrix._shard_writer(str(tmp_path), height, weighted=False, merge_repeats=False)
    shards = [line.to_pylist()[0] for line in write(iter(keys.to_batches(max_chunksize=3)))]
    rows = [set(range(shard["start"], shard["stop"])) for shard in shards]
    for shard, own in zip(shards, rows, strict=True):
        inside = [pair for pair in pairs if pair[0] in own]
        assert shard["nnz"] == len(inside) and len(own) <= height
        assert len([pair for pair in inside if pair[0] != max(own)]) < size
    assert sum(shard["nnz"] for shard in shards) == len(pairs)
    assert len(set().union(*rows)) == sum(map(len, rows))


def test_an_empty_matrix(spark: SparkSession, tmp_path: Path) -> None:
    df = spark.createDataFrame([], SCHEMA)
    found = write_csr(df, str(tmp_path), row="r", column="c", value="v", shape=(2, 3)).open()
    assert found.indptr.tolist() == [0, 0, 0] and len(found.indices) == 0


def test_a_second_matrix_replaces_the_first(spark: SparkSession, tmp_path: Path) -> None:
    first = spark.createDataFrame(ENTRIES, SCHEMA)
    write_csr(first, str(tmp_path), row="r", column="c", value="v", shape=(5, 3)).open()
    second = spark.createDataFrame([(1, 1, 7.0)], SCHEMA)
    files = write_csr(second, str(tmp_path), row="r", column="c", value="v", shape=(5, 3))
    assert dense(files).sum() == 7


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((5, 0, 1.0), "row 5 is outside of 0 … 4"),
        ((-1, 0, 1.0), "row -1 is outside"),
        ((0, 3, 1.0), "column 3 is outside of 0 … 2"),
        ((4, 2, 9.0), r"entry \(4, 2\) is there twice"),
        ((None, 1, 1.0), "a row is null"),
        ((1, 1, None), "a value is null"),
        ((1, 1, float("nan")), "not finite"),
    ],
)
def test_entries_that_make_no_matrix(
    spark: SparkSession, tmp_path: Path, entry: tuple, message: str
) -> None:
    df = spark.createDataFrame([*ENTRIES, entry], SCHEMA)
    with pytest.raises(MatrixError, match=message):
        write_csr(df, str(tmp_path), row="r", column="c", value="v", shape=(5, 3))
    with pytest.raises(MatrixError, match="no finished matrix"):
        CsrFiles(str(tmp_path)).open()


def test_what_nobody_has_opened_for_a_day_leaves_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made: list[str] = []

    def opened(name: str) -> np.ndarray:
        def build(target: Path) -> None:
            made.append(name)
            np.save(target / "values.npy", np.arange(5))

        return map_cached(name, "", build)["values"]

    def folders() -> set[Path]:
        return {path for path in tmp_path.glob("recs-matrices-*/*") if path.is_dir()}

    old = opened("old")
    (of_old,) = folders()
    opened("again")
    (of_again,) = folders() - {of_old}
    killed = of_old.parent / "making-killed"
    killed.mkdir()
    (of_old.parent / "notes.txt").write_text("of somebody else")
    yesterday = time.time() - 25 * 3600
    for path in of_old.parent.iterdir():
        os.utime(path, (yesterday, yesterday))
    opened("again")
    assert folders() == {of_again}
    opened("new")
    assert len(folders()) == 2
    assert {path.stem for path in of_old.parent.glob("*.lock")} == {p.name for p in folders()}
    assert old.tolist() == [0, 1, 2, 3, 4]  # still mapped
    assert opened("again").tolist() == opened("old").tolist() == old.tolist()
    assert made == ["old", "again", "new", "old"]
    assert (of_old.parent / "notes.txt").exists()


def test_a_link_in_a_shared_folder_is_not_taken_for_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "home").mkdir()
    (tmp_path / f"recs-matrices-{os.getuid()}").symlink_to(tmp_path / "home")
    with pytest.raises(MatrixError, match="is a link, or belongs to another user"):
        map_cached("folder", "", lambda target: None)
    assert not any((tmp_path / "home").iterdir())


def test_the_scratch_space_of_a_spark_worker_is_left_to_spark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path},/nowhere")
    map_cached("old", "", lambda target: np.save(target / "values.npy", np.arange(5)))
    (folder,) = (path for path in tmp_path.glob("recs-matrices-*/*") if path.is_dir())
    os.utime(folder, (0, 0))
    map_cached("new", "", lambda target: np.save(target / "values.npy", np.arange(5)))
    assert folder.exists()
