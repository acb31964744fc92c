"""What stages say of the same models agrees: lists and ranks, evaluation and the search."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

import pipelines.inputs
from pipelines.inputs import bounded_batches
from pipelines.rank import _warn_of_short_lists
from pipelines.run import open_lake, run_stages, stages_named
from recs import readers
from recs.config import Config
from recs.lake import Lake
from tests.pipelines.delivery import configurer, deliver, make_delivery

Configure = Callable[..., Config]
SETTINGS = [
    "evaluate.split=validation",
    "evaluate.protocols=[full, popularity100]",
    "recommend.k=20",
]


@pytest.fixture(scope="module")
def measured(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Configure, Lake, Callable[[str], list[Row]]]:
    """A backtest of validation events in which users repeat items, and one has an item of its own.

    Users 10 to 29 go through their items twice; user 2 alone has item99, which is held out.
    """
    folder = tmp_path_factory.mktemp("measured")
    delivery = make_delivery(folder / "data")
    deliver(delivery, 2, range(10, 40))
    late = (
        "u,i,t,e\nuser2,item99,2025-01-03T00:00:00Z,view\nuser2,item4,2025-01-03T00:00:01Z,view\n"
    )
    (Path(delivery) / "events" / "day-03.csv").write_text(late)
    configure = configurer(delivery, folder / "lake")
    config = configure(*SETTINGS)
    lake = open_lake(config)
    names = ["ingest", "vocabulary", "split", "fit", "recommend", "rank"]
    run_stages(stages_named(config, *names), config, lake)

    def rows(table: str) -> list[Row]:
        return readers.read(lake, table).collect()

    return configure, lake, rows


def test_lists_hold_the_targets_that_ranks_promise(
    measured: tuple[Configure, Lake, Callable[[str], list[Row]]],
) -> None:
    _, _, rows = measured
    ranks = [r for r in rows("ranks") if r.protocol == "full"]
    listed = {
        (r.model, r.user_id, r.item_id): r.rank for r in rows("recommendations") if not r.fallback
    }
    counted = Counter((r.repeat, r["rank"] is None) for r in ranks if r.model == "popularity")
    assert counted[True, True] == 20 and not counted[True, False] and counted[False, False] > 10
    for k in (1, 2, 3, 5):
        for model in ("popularity", "slim"):
            own = [r for r in ranks if r.model == model]
            shown = sum(listed.get((model, r.user_id, r.item_id), k + 1) <= k for r in own)
            assert sum(r["rank"] is not None and r["rank"] + r.ties <= k for r in own) <= shown
            assert shown <= sum(r["rank"] is not None and r["rank"] <= k for r in own)


def test_candidates_and_counts_are_of_what_models_are_fitted_on(
    measured: tuple[Configure, Lake, Callable[[str], list[Row]]],
) -> None:
    configure, lake, rows = measured
    item99 = {r.item: r.item_id for r in rows("item_ids")}["item99"]
    counts = {r.item_id: (r.train_events, r.known_events) for r in rows("catalogue")}
    assert counts[item99] == (0, 1)
    (target,) = (
        r
        for r in rows("ranks")
        if (r.model, r.protocol, r.item_id) == ("popularity", "full", item99)
    )
    assert target["rank"] is None and not target.head and not target.repeat
    assert all(r.item_id != item99 for r in rows("recommendations"))


@pytest.mark.parametrize("protocol", ["full", "popularity100"])
def test_a_search_measures_as_evaluation_does(
    measured: tuple[Configure, Lake, Callable[[str], list[Row]]], protocol: str
) -> None:
    configure, lake, rows = measured
    (metric,) = (
        r
        for r in rows("metrics")
        if (r.model, r.protocol, r.slice, r.metric, r.k) == ("slim", protocol, "all", "ndcg", 5)
    )
    config = configure(
        *SETTINGS,
        *("tune_slim.l1=[0.1]", "tune_slim.l2=[0.1]", f"tune_slim.protocol={protocol}"),
        *("tune_slim.metric=ndcg", "tune_slim.k=5"),
    )
    run_stages(stages_named(config, "tune/slim"), config, lake)
    (trial,) = rows("trials")
    assert 0 < trial.value < 1
    assert (trial.value, trial.users) == (pytest.approx(metric.value), metric.users)


def test_lists_that_are_shorter_than_is_measured_are_told(
    configured: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    for k, told in ((5, ""), (4, "ks goes up to 5, lists hold 4 items.* give recommend.k=5")):
        job: Any = SimpleNamespace(config=configured(f"recommend.k={k}"))
        _warn_of_short_lists(job)
        assert re.search(told, caplog.text) and bool(caplog.text) == bool(told)


def test_batches_of_wide_rows_are_bounded_by_bytes(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.inputs, "_BATCH_BYTES", 2**20)
    wide = F.array_repeat(F.col("id").cast("int"), 1000).alias("wide")
    users = spark.range(0, 2000, 1, 1).select(wide)  # 8 MB

    def sizes(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield pa.RecordBatch.from_pydict({"bytes": [batch.nbytes]})

    def largest() -> int:
        return max(row.bytes for row in users.mapInArrow(sizes, "bytes long").collect())

    before = largest()
    with bounded_batches(spark):
        bounded = largest()
    assert before == largest() > 7e6 and bounded < 2e6
