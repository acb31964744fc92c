"""Vectors of users from their newest histories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession

from recs.nn.models import build
from recs.nn.network import Histories, Sizes
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


@pytest.mark.parametrize("name", ["gru4rec", "sasrec"])
def test_a_vector_is_the_same_alone_and_among_others(
    spark: SparkSession, tmp_path: Path, name: str
) -> None:
    length, width, num_users, num_items = 40, 50, 100, 200
    torch.manual_seed(0)
    settings = {"dim": 16}
    network = build(name, Sizes(num_users, num_items, 1, length), settings).eval()
    save_model(str(tmp_path), network, name=name, settings=settings, versions={})
    rng = np.random.default_rng(1)
    histories = []
    for user in range(num_users):
        size = 1 + user * width // num_users
        items = [-1] * (width - size) + rng.integers(0, num_items, size).tolist()
        histories.append((user, size, items, [min(item, 0) for item in items], [0] * width))
    frame = spark.createDataFrame(histories, SCHEMA)

    def embedded(frame: DataFrame) -> dict[int, list[float]]:
        rows = user_embeddings(frame, str(tmp_path)).collect()
        return {row["user_id"]: row["vector"] for row in rows}

    together = embedded(frame.coalesce(1))
    assert len(together) == num_users
    with torch.no_grad():
        plain = network.queries(
            Histories(
                torch.arange(1),
                *(torch.tensor([values[-length:]]) for values in histories[-1][2:]),
            )
        )
    np.testing.assert_allclose(together[num_users - 1], plain[0], rtol=1e-4, atol=1e-5)
    some = embedded(frame.where("user_id % 3 = 0").repartition(7))
    assert some == {user: together[user] for user in range(0, num_users, 3)}
    for user in (5, 99):
        assert embedded(frame.where(f"user_id = {user}")) == {user: together[user]}
