"""Interactions of two users, labelled by hand."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession

LABELLED = (
    "user_id int, item_id int, sequence int, timestamp timestamp, event_type string, "
    "weight double, positive boolean, split string"
)


@pytest.fixture
def labelled(spark: SparkSession) -> DataFrame:
    rows = [
        (0, 5, 0, None, "view", 2.0, True, "train"),
        (0, 2, 1, None, "view", 1.0, True, "train"),
        (0, 5, 2, None, "view", 3.0, True, "train"),
        (0, 7, 3, None, "dislike", 1.0, False, "train"),
        (0, 3, 4, None, "view", 1.0, True, "validation"),
        (0, 9, 5, None, "view", 1.0, True, "test"),
        (1, 2, 0, None, "view", 1.0, True, "test"),
    ]
    return spark.createDataFrame(rows, LABELLED)
