"""Rows/s of both feeds, and examples/s of SASRec in recs and in RecTools.

``python benchmarks/training.py [rows=2000000] [histories=4000] [threads=2] [work=FOLDER]
[keep=true]``

- Feeds: a training set of int32[50] histories, all of full length, read through once by each
  feed, batches of 512 made and thrown away; the files are in the page cache, as they are from the
  second epoch on.
- SASRec: the same generated histories of 50 items, 64 wide, 2 blocks of 1 head, batches of 128,
  full cross-entropy over 5,000 items, Adam, dropout .2, float32; each library's own loop and data
  loader, an epoch to warm up and then three. RecTools runs in this process, recs under torchrun.
- Two processes against one: the same, one thread a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import arguments, report

import recs.training.worker
from recs.session import get_session
from recs.training.dataset import TrainingSet
from recs.training.feeds import READERS, Feed, columns_of
from recs.training.plan import Plan
from recs.training.settings import Network, Optimizer, Processes, Training, TrainingJob

LENGTH, LANES = 50, 8
NUM_ITEMS, DIM, BLOCKS, DROPOUT, BATCH, EPOCHS = 5_000, 64, 2, 0.2, 128, 3


def export_set(folder: Path, items: np.ndarray) -> TrainingSet:
    """Write histories int32[n, L] as a training set, as the stage does."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyspark.sql import functions as F

    from recs.training.export import export

    spark = get_session("benchmark")
    size, length = items.shape
    raw = folder / "raw"
    raw.mkdir(parents=True)
    numbers = np.arange(size, dtype=np.int32)
    pq.write_table(
        pa.table(
            {
                "user_id": numbers,
                "last": np.full(size, length - 1, np.int32),
                "length": np.full(size, length, np.int32),
                "items": pa.ListArray.from_arrays(
                    pa.array(np.arange(size + 1, dtype=np.int32) * length), pa.array(items.ravel())
                ),
            }
        ),
        raw / "0.parquet",
        row_group_size=100_000,
    )
    rows = spark.read.parquet(str(raw)).withColumns(
        {
            name: F.array_repeat(F.lit(0), length).cast("array<int>")
            for name in ("event_types", "gaps")
        }
    )
    catalogue = spark.range(NUM_ITEMS).selectExpr(
        "cast(id as int) item_id", "1L train_events", "true recommendable"
    )
    positives = spark.createDataFrame([(0, [0])], "user_id int, items array<int>")
    return export(
        rows,
        rows.withColumn("target", F.lit(0)).limit(0),
        positives,
        catalogue,
        str(folder / "set"),
        tables={},
        num_users=size,
        num_items=NUM_ITEMS,
        event_type_ids={"view": 0},
        positive=["view"],
        length=length,
        lanes=LANES,
        seed=0,
    )


def feed_rates(training_set: TrainingSet) -> dict[str, float]:
    """Return rows/s of each feed."""
    manifest = training_set.manifest
    plan = Plan(manifest.parts["train"], manifest.lanes, 512, seed=0)
    rates = {}
    for name in READERS:
        columns = columns_of(training_set, "train", ["items"])
        feed = Feed(training_set, "train", plan, name, columns, LENGTH)  # type: ignore[arg-type]
        for measured in (False, True):
            started = time.perf_counter()
            rows = sum(int((batch.columns["user_id"] >= 0).sum()) for batch in feed.batches(0))
            seconds = time.perf_counter() - started
            assert rows == sum(file.rows for file in manifest.parts["train"])
            if measured:
                rates[f"{name}_rows_per_s"] = rows / seconds
    return rates


def job_of(training_set: TrainingSet, folder: Path, processes: int, threads: int) -> TrainingJob:
    return TrainingJob(
        name="sasrec",
        training_set=training_set.folder,
        folder=str(folder),
        network=Network(
            model={
                "dim": DIM,
                "blocks": BLOCKS,
                "heads": 1,
                "dropout": DROPOUT,
                "attention_dropout": DROPOUT,
            },
            loss={"name": "cross_entropy"},
            training=Training(
                epochs=1 + EPOCHS,
                batch_size=BATCH,
                feed="arrow",
                optimizer=Optimizer(name="adam", weight_decay=0.0, clip=None),
            ),
        ),
        processes=Processes(count=processes, threads=threads),
        seed=0,
    )


def our_rate(training_set: TrainingSet, folder: Path, processes: int, threads: int) -> float:
    """Return examples/s of the loop over all epochs but the first, as the stage starts it."""
    folder.mkdir(parents=True)
    uri = folder / "job.json"
    uri.write_text(job_of(training_set, folder, processes, threads).model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worker = recs.training.worker.__file__
    command = [*launcher, f"--nproc-per-node={processes}", worker, str(uri)]
    subprocess.run(command, check=True, capture_output=True)
    return _after_the_first(json.loads((folder / "metrics.json").read_text()))


def _after_the_first(metrics: dict[str, Any]) -> float:
    rates = [row["examples_per_s"] for row in metrics["history"][1:]]
    return len(rates) / sum(1 / rate for rate in rates)


def rectools_rate(items: np.ndarray, threads: int) -> float:
    """Return examples/s of RecTools' SASRec on the same histories."""
    import pytorch_lightning as pl
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    torch.set_num_threads(threads)
    size, length = items.shape
    interactions = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(size), length),
            Columns.Item: items.ravel(),
            Columns.Weight: 1.0,
            Columns.Datetime: np.tile(pd.date_range("2025-01-01", periods=length), size),
        }
    )
    seconds: list[float] = []

    class Clock(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            self.started = time.perf_counter()

        def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            seconds.append(time.perf_counter() - self.started)

    def trainer() -> pl.Trainer:
        return pl.Trainer(
            max_epochs=1 + EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Clock()],
        )

    SASRecModel(
        n_blocks=BLOCKS,
        n_heads=1,
        n_factors=DIM,
        dropout_rate=DROPOUT,
        session_max_len=length - 1,
        loss="softmax",
        batch_size=BATCH,
        epochs=1 + EPOCHS,
        get_trainer_func=trainer,
    ).fit(Dataset.construct(interactions))
    return EPOCHS * size / sum(seconds[1:])


def main() -> None:
    given = arguments("rows", "histories", "threads", "work")
    rows, histories, threads = (
        int(float(given.get(key, default)))
        for key, default in (("rows", 2_000_000), ("histories", 4_000), ("threads", 2))
    )
    work = Path(given.get("work") or tempfile.mkdtemp(prefix="recs-training-"))
    rng = np.random.default_rng(0)
    large = export_set(work / "feeds", rng.integers(0, NUM_ITEMS, (rows, LENGTH), dtype=np.int32))
    walks = (rng.integers(0, NUM_ITEMS, (histories, 1)) + np.arange(LENGTH) * 7) % NUM_ITEMS
    small = export_set(work / "walks", walks.astype(np.int32))
    get_session().stop()
    figures: dict[str, object] = {
        "rows": rows,
        "length": LENGTH,
        "histories": histories,
        "threads": threads,
        **feed_rates(large),
        "sasrec_examples_per_s": (ours := our_rate(small, work / "one", 1, threads)),
        "rectools_examples_per_s": (theirs := rectools_rate(walks, threads)),
    }
    one, two = (our_rate(small, work / f"{n}-processes", n, threads=1) for n in (1, 2))
    figures |= {"one_process_examples_per_s": one, "two_processes_examples_per_s": two}
    ratios = {"vs_best_peer": ours / theirs, "two_processes_vs_one": two / one}
    report("training", figures, ratios, given)


if __name__ == "__main__":
    main()
