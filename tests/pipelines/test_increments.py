"""Days delivered one by one end in the same tables as all at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import SparkSession

from pipelines.run import STAGES, open_lake, run_stages
from recs.config import Config
from recs.lake import Lake
from recs.runs import Ledger
from tests.pipelines.delivery import deliver

PREPARE = ("ingest", "vocabulary", "split", "sequences", "positives")
OVERRIDES = ("sequences.length=4", "events.max_reject_share=1")
TABLES = ("events", "user_ids", "item_ids", "interactions", "sequences", "user_positives")


def prepare(config: Config) -> Lake:
    lake = open_lake(config)
    run_stages([STAGES[name] for name in PREPARE], config, lake)
    return lake


def tables(lake: Lake) -> dict[str, list[str]]:
    versions = Ledger(lake).versions()
    found = {name: lake.load(name, versions[lake.key(name)]).drop("run_id") for name in TABLES}
    return {name: sorted(map(str, df.collect())) for name, df in found.items()}


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
