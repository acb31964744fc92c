"""The session runs Delta and the driver's Python."""

from __future__ import annotations

import sys
from pathlib import Path

from pyspark.sql import SparkSession


def test_delta_tables_can_be_written_and_read(spark: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "table")
    spark.range(3).write.format("delta").save(path)
    assert spark.read.format("delta").load(path).count() == 3


def test_workers_run_the_drivers_python(spark: SparkSession) -> None:
    def executable(batches):
        import pyarrow as pa

        for batch in batches:
            yield pa.RecordBatch.from_pydict({"python": [sys.executable] * batch.num_rows})

    rows = spark.range(2).mapInArrow(executable, "python string").collect()
    assert {row.python for row in rows} == {sys.executable}
