"""Days delivered one by one, whatever runs in between, end in the same tables as all at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.run import open_lake, run_stages, stages_named
from recs.config import Config
from recs.lake import Lake
from recs.ledger import Ledger
from tests.pipelines.delivery import deliver

PREPARE = ("ingest", "vocabulary", "split", "sequences", "positives")
OVERRIDES = ("sequences.length=4", "events.max_reject_share=.05")
TABLES = ("events", "user_ids", "item_ids", "interactions", "sequences", "user_positives")


def run(config: Config, *stages: str) -> Lake:
    lake = open_lake(config)
    run_stages(stages_named(config, *stages), config, lake)
    return lake


def prepare(config: Config) -> Lake:
    return run(config, *PREPARE)


def tables(lake: Lake) -> dict[str, list[str]]:
    """Return all rows of the tables; of an event all but the number of its file."""
    versions = Ledger(lake).versions()
    found = {name: lake.load(name, versions[lake.key(name)]).drop("run_id") for name in TABLES}
    return {name: sorted(map(str, df.drop("source").collect())) for name, df in found.items()}


def test_days_one_by_one_end_as_all_at_once(
    spark: SparkSession, configured: Callable[..., Config], delivery: Path, tmp_path: Path
) -> None:
    prepare(configured(*OVERRIDES, f"root={tmp_path}/daily", "run_id=first"))
    # A day of old and new users, a day once more under another name, and an event that comes late.
    deliver(delivery, 2, range(26, 34))
    events = delivery / "events"
    (events / "later.csv").write_text((events / "day-02.csv").read_text())
    late = events / "late.csv"
    late.write_text("u,i,t,e\nuser3,item5,2025-01-01T00:00:02Z,view\n")
    os.utime(late, (0, 0))  # from an archive that keeps the times of its files
    lake = prepare(configured(*OVERRIDES, f"root={tmp_path}/daily", "run_id=second"))
    at_once = prepare(configured(*OVERRIDES, f"root={tmp_path}/at_once"))
    expected = tables(at_once)
    assert tables(lake) == expected

    # A day without events.
    prepare(configured(*OVERRIDES, f"root={tmp_path}/daily", "run_id=third"))
    assert tables(lake) == expected

    versions = Ledger(lake).versions()
    users = lake.load("user_ids", versions["user_ids"]).select("user", "user_id")
    for table in ("interactions", "sequences", "user_positives"):
        rows = lake.load(table, versions[lake.key(table)]).where("run_id = 'second'")
        written = {row["user"] for row in rows.join(users, "user_id").collect()}
        assert written == {"user3", *(f"user{n}" for n in range(26, 34))}, table


@pytest.mark.parametrize(
    ("days", "interrupted"),
    [
        (2, ("vocabulary",)),
        pytest.param(10, PREPARE, marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
    ],
)
def test_ingests_between_the_stages_of_a_night_lose_nothing(
    spark: SparkSession,
    configured: Callable[..., Config],
    delivery: Path,
    tmp_path: Path,
    days: int,
    interrupted: tuple[str, ...],
) -> None:
    """After some stages of each night an hour's events are ingested; a weight changes amid them."""
    hours = itertools.count(2)
    weight = "events.types.view.weight=1"
    for night in range(days):
        if night == days // 2:
            weight = "events.types.view.weight=3"
        config = configured(*OVERRIDES, weight, f"root={tmp_path}/nightly", f"run_id=night-{night}")
        for stage in PREPARE:
            run(config, stage)
            if stage in interrupted:
                hour = next(hours)
                deliver(delivery, hour, range(20 + hour, 28 + hour))
                between = f"run_id=hour-{hour}"
                run(configured(*OVERRIDES, weight, f"root={tmp_path}/nightly", between), "ingest")
    lake = prepare(configured(*OVERRIDES, weight, f"root={tmp_path}/nightly", "run_id=last"))
    at_once = prepare(configured(*OVERRIDES, weight, f"root={tmp_path}/at_once"))
    found, expected = tables(lake), tables(at_once)
    for name in TABLES:
        assert found[name] == expected[name], name
