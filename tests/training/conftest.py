"""A small training set, written once by Spark and read by all tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from recs.training.dataset import TrainingSet
from recs.training.export import export, with_targets

NUM_USERS, NUM_ITEMS, LENGTH, LANES = 120, 30, 40, 4


def histories(seed: int = 0) -> list[list[int]]:
    """Return each user's items: mostly i, i + 1, i + 2 … modulo the items; of many lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(NUM_USERS):
        first, size = rng.integers(NUM_ITEMS), rng.integers(3, 60)
        steps = np.where(rng.random(size) < 0.9, 1, rng.integers(1, NUM_ITEMS, size))
        made.append(((first + np.cumsum(steps)) % NUM_ITEMS).tolist())
    return made


@pytest.fixture(scope="session")
def training_set(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """The last item of a history is the target of validation; every seventh event is a dislike.

    Two more users have a target: one has had nothing before, the other has only disliked.
    """
    rows: list[tuple[int, int, int, list[int], list[int], list[int]]] = []
    events = [(user, 3, 1, True, "validation") for user in (NUM_USERS, NUM_USERS + 1)]
    wanted: list[tuple[int, list[int]]] = [(NUM_USERS + 1, [])]
    for user, items in enumerate(histories()):
        types = [1 if n % 7 == 6 else 0 for n in range(len(items))]
        kept, kinds = items[:-1][-LENGTH:], types[:-1][-LENGTH:]
        rows.append((user, len(items) - 2, len(kept), kept, kinds, [0] * len(kept)))
        events.append((user, items[-1], len(items) - 1, True, "validation"))
        liked = {item for item, kind in zip(items[:-1], types, strict=False) if kind == 0}
        wanted.append((user, sorted(liked)))
    dislikes = (NUM_USERS + 1, 0, 1, [5], [1], [0])
    arrays = "items array<int>, event_types array<int>, gaps array<int>"
    sequences = spark.createDataFrame(rows, f"user_id int, last int, length int, {arrays}")
    interactions = spark.createDataFrame(
        events, "user_id int, item_id int, sequence int, positive boolean, split string"
    )
    positives = spark.createDataFrame(wanted, "user_id int, items array<int>")
    catalogue = spark.range(NUM_ITEMS).select(
        F.col("id").cast("int").alias("item_id"),
        (F.col("id") + 1).alias("train_events"),
        F.lit(True).alias("recommendable"),
    )
    folder = tmp_path_factory.mktemp("training") / "set"
    return export(
        sequences,
        with_targets(
            sequences.union(spark.createDataFrame([dislikes], sequences.schema)),
            interactions,
            positives,
        ),
        positives,
        catalogue,
        str(folder),
        tables={"sequences": 3},
        num_users=NUM_USERS,
        num_items=NUM_ITEMS,
        event_type_ids={"view": 0, "dislike": 1},
        positive=["view"],
        length=LENGTH,
        lanes=LANES,
        seed=1,
    )


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "model")
