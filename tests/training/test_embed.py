"""Vectors of users from their newest histories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession

from recs.nn.models import build
from recs.nn.network import Sizes
from recs.training.embed import user_embeddings
from recs.training.model_folder import save_model

NUM_ITEMS, NUM_TYPES, LENGTH = 6, 2, 3
SCHEMA = "user_id int, last int, items array<int>, event_types array<int>, gaps array<int>"


@pytest.mark.parametrize(("name", "event_types"), [("bert4rec", False), ("gru4rec", True)])
def test_events_that_came_after_the_training_are_passed_over(
    spark: SparkSession, tmp_path: Path, name: str, event_types: bool
) -> None:
    torch.manual_seed(0)
    settings = {"dim": 8, "event_types": event_types}
    network = build(name, Sizes(9, NUM_ITEMS, NUM_TYPES, LENGTH), settings).eval()
    save_model(str(tmp_path), network, name=name, settings=settings, versions={})
    new_item, new_type = NUM_ITEMS, NUM_TYPES
    histories = [
        (1, 4, [3, 1, new_item, 4, 2 + NUM_ITEMS], [0, 1, 1, 0, 0], [0] * 5),
        (2, 2, [-1, -1, 3, 1, 4], [-1, -1, 0, 1, 0], [0] * 5),
        (3, 0, [-1, -1, -1, -1, new_item], [-1, -1, -1, -1, 0], [0] * 5),
        (4, 3, [-1, 3, 1, 5, 4], [-1, 0, 1, new_type, 0], [0] * 5),
        (5, 3, [-1, 3, 1, 5, 4], [-1, 0, 1, 0, 0], [0] * 5),
    ]
    rows = user_embeddings(spark.createDataFrame(histories, SCHEMA), str(tmp_path)).collect()
    assert {row["user_id"]: row["last"] for row in rows} == {1: 4, 2: 2, 4: 3, 5: 3}
    vectors = {row["user_id"]: np.array(row["vector"]) for row in rows}
    np.testing.assert_allclose(vectors[1], vectors[2], rtol=1e-5, atol=1e-6)
    # A network that does not read types reads the event whose type is new.
    np.testing.assert_allclose(vectors[4], vectors[2 if event_types else 5], rtol=1e-5, atol=1e-6)
