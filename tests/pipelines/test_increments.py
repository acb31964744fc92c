"""Days delivered one by one end in the same tables as all at once."""

from __future__ import annotations

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
    daily = configured(*OVERRIDES, f"root={tmp_path}/daily")
    prepare(daily)
    users = {2: range(10, 34), 3: range(5, 12)}
    for day in (2, 3):
        deliver(delivery, day, users[day])
        prepare(daily)
    # A day once more under another name, and an event of a known user and item that comes late.
    events = delivery / "events"
    (events / "later.csv").write_text((events / "day-02.csv").read_text())
    late = "u,i,t,e\nuser3,item5,2025-01-01T00:00:02Z,view\n"
    (events / "late.csv").write_text(late)
    lake = prepare(daily)
    done = Ledger(lake).newest("sequences")
    assert done is not None and not Ledger(lake).rows()[-1]["overwritten"]
    at_once = prepare(configured(*OVERRIDES, f"root={tmp_path}/at_once"))
    assert tables(lake) == tables(at_once)
    rebuilt = prepare(configured(*OVERRIDES, f"root={tmp_path}/daily", "rebuild=true"))
    assert tables(rebuilt) == tables(at_once)


def test_only_users_with_new_events_are_written_again(
    spark: SparkSession, configured: Callable[..., Config], delivery: Path
) -> None:
    prepare(configured(*OVERRIDES, "run_id=first"))
    deliver(delivery, 2, range(3, 5))
    lake = prepare(configured(*OVERRIDES, "run_id=second"))
    version = Ledger(lake).versions()[lake.key("sequences")]
    rows = lake.load("sequences", version).join(lake.load("user_ids").drop("run_id"), "user_id")
    written = {row["user"] for row in rows.where("run_id = 'second'").collect()}
    assert written == {"user3", "user4"}
