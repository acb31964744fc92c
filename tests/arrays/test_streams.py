"""Runs of rows are whole, however batches cut them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from recs.arrays.streams import by_user, packed, whole_runs


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_runs_are_whole(size: int) -> None:
    files = np.repeat([3, 4, 9], [5, 1, 4])
    table = pa.table({"file": files, "row": np.arange(10)})
    batches = table.to_batches(max_chunksize=size)
    batches.insert(1, batches[0].slice(0, 0))
    found = [(file, rows["row"].to_pylist()) for file, rows in whole_runs(batches, "file")]
    assert found == [(3, [0, 1, 2, 3, 4]), (4, [5]), (9, [6, 7, 8, 9])]


def test_a_users_rows_come_together_in_order(spark: SparkSession) -> None:
    rows = [(user, place) for place in (5, 2**31 - 1, 0) for user in (2**31 - 1, 0, 7)]
    frame = spark.createDataFrame(rows, "u int, p int").repartition(3)
    keys = frame.select(packed("u", "p").alias("key"))
    parts = [part for part in by_user(keys).rdd.map(lambda row: row.key).glom().collect() if part]
    for part in parts:
        assert part == sorted(part)
    assert sorted(key for part in parts for key in part) == sorted(u * 2**32 + p for u, p in rows)
    owners = [{key >> 32 for key in part} for part in parts]
    assert sum(map(len, owners)) == 3
