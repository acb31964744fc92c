"""Every error in one line: whose fault it is, and the cause that matters."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from py4j.protocol import Py4JNetworkError
from pyspark.sql import SparkSession

from pipelines.compare import GateFailed
from recs.arrays.matrix import MatrixError
from recs.errors import UserError, tell

Act = Callable[[SparkSession, Path], object]


def test_users_errors_are_told_whole() -> None:
    assert tell(MatrixError("entry 3 is null")) == ("entry 3 is null", 2, True)
    assert tell(GateFailed("too low")) == ("too low", 3, True)
    denied = OSError(errno.EACCES, os.strerror(errno.EACCES), "/lake")
    assert tell(denied) == ("/lake: Permission denied", 2, True)
    assert tell(FileNotFoundError("s3://a/b")) == ("FileNotFoundError: s3://a/b", 2, True)


def test_other_errors_are_faults_with_a_traceback() -> None:
    assert tell(ValueError("no such axis")) == ("ValueError: no such axis", 1, False)
    assert tell(ZeroDivisionError()) == ("ZeroDivisionError", 1, False)
    assert tell(TimeoutError("no answer")).exit_code == 1


def test_a_jvm_that_is_gone_is_told() -> None:
    message, code, _ = tell(Py4JNetworkError("Answer from Java side is empty"))
    assert code == 1 and message.startswith("Spark's JVM does not answer")


def _unzipped(spark: SparkSession, folder: Path) -> object:
    (folder / "day.csv.gz").write_bytes(b"user,item\nu1,i1\n")
    return spark.read.text(f"{folder}/day.csv.gz").collect()


def _written(spark: SparkSession, folder: Path) -> None:
    (folder / "day.csv.gz").write_bytes(b"user,item\nu1,i1\n")
    rows = spark.read.text(f"{folder}/day.csv.gz")
    rows.write.format("delta").save(f"{folder}/table")


def _zst(spark: SparkSession, folder: Path) -> object:
    packed = pa.compress(b"user,item\nu1,i1\n", codec="zstd", asbytes=True)
    (folder / "day.csv.zst").write_bytes(packed)
    return spark.read.text(f"{folder}/day.csv.zst").collect()


def _colon(spark: SparkSession, folder: Path) -> object:
    (folder / "10:00.csv").write_text("user\nu1\n")
    return spark.read.option("recursiveFileLookup", "true").text(str(folder)).collect()


def _no_parquet(spark: SparkSession, folder: Path) -> object:
    (folder / "day.parquet").write_bytes(b"user,item\nu1,i1\n")
    return spark.read.parquet(f"{folder}/day.parquet").collect()


def _two_types(spark: SparkSession, folder: Path) -> object:
    pq.write_table(pa.table({"item": pa.array([1], pa.int32())}), folder / "a.parquet")
    pq.write_table(pa.table({"item": ["x"]}), folder / "b.parquet")
    return spark.read.schema("item int").parquet(str(folder)).collect()


def _constraint(spark: SparkSession, folder: Path) -> object:
    table = f"delta.`{folder}/table`"
    spark.sql(f"create table {table} (user string) using delta")
    spark.sql(f"alter table {table} add constraint known check (user <> 'anna')")
    return spark.sql(f"insert into {table} values ('anna')")


def _missing_column(spark: SparkSession, folder: Path) -> object:
    return spark.range(1).select("none").collect()


def _stream(spark: SparkSession, folder: Path) -> object:
    def refuse(batch: object, number: int) -> None:
        raise MatrixError("entry 3 is null")

    stream = spark.readStream.format("rate").load().writeStream.foreachBatch(refuse)
    started = stream.trigger(once=True).option("checkpointLocation", f"{folder}/c").start()
    return started.awaitTermination()


def _in_a_task(error: Exception) -> Act:
    def act(spark: SparkSession, folder: Path) -> object:
        def fail(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
            for batch in batches:
                try:
                    yield batch.column("none")
                except KeyError as cause:
                    raise error from cause

        return spark.range(2).repartition(2).mapInArrow(fail, "id long").collect()

    return act


@pytest.mark.parametrize(
    ("act", "code", "message"),
    [
        (_unzipped, 2, "{folder}/day.csv.gz: not a gzip file, which its name says it is: rename"),
        (_written, 2, "{folder}/day.csv.gz: not a gzip file"),
        (_zst, 2, "{folder}/day.csv.zst: RuntimeException: native zStandard library not available"),
        (_colon, 2, "{folder}/10:00.csv: Hadoop reads no name with a colon: rename it"),
        (_no_parquet, 2, "day.parquet is not a Parquet file"),
        (_two_types, 2, "b.parquet. Data type mismatches when reading Parquet column [item]"),
        (_constraint, 1, "CHECK constraint known ("),
        (lambda spark, folder: spark.table("none"), 2, "table or view `none` cannot be found."),
        (lambda spark, folder: spark.read.text(f"{folder}/no"), 2, "[PATH_NOT_FOUND] Path does"),
        (_missing_column, 2, "[UNRESOLVED_COLUMN.WITH_SUGGESTION]"),
        (_in_a_task(MatrixError("entry 3\nis null")), 2, "entry 3 is null"),
        (_in_a_task(UserError("user 7 has too few")), 2, "user 7 has too few"),
        (_in_a_task(ValueError("wrong axis")), 1, "ValueError: wrong axis"),
        (_stream, 2, "entry 3 is null"),
    ],
)
def test_errors_of_spark_are_one_line(
    spark: SparkSession, tmp_path: Path, act: Act, code: int, message: str
) -> None:
    with pytest.raises(Exception) as raised:
        act(spark, tmp_path)
    told = tell(raised.value)
    assert message.format(folder=tmp_path) in told.message
    assert (told.exit_code, told.whole) == (code, True)
    assert "\n" not in told.message
    assert not any(noise in told.message for noise in ("SQLSTATE", "Did you mean", "+- ", "\tat "))


def test_values_of_rows_are_not_told(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(Exception) as raised:
        spark.sql("select cast('anna' as int)").collect()
    assert "anna" not in tell(raised.value).message
    with pytest.raises(Exception) as raised:
        _constraint(spark, tmp_path)
    assert "values" not in tell(raised.value).message
