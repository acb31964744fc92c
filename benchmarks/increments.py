"""Days delivered one by one against all at once: equal tables, a day's cost, SLIM's warm start.

``python benchmarks/increments.py [events=3e6] [users=3e5] [items=1e4] [days=30] [work=FOLDER]
[keep=true]``

The first days are one delivery, the last ten come one by one. Then everything is made anew in the
same lake, and from nothing in another: all tables have to be equal.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import arguments, report
from generated import configure, run_measured, write_log
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recs.data.synthetic import SyntheticConfig
from recs.lake import Lake
from recs.ledger import Ledger

PREPARE = ("ingest", "vocabulary", "split", "sequences", "positives")
TABLES = (
    "events",
    "user_ids",
    "item_ids",
    "interactions",
    "catalogue",
    "sequences",
    "user_positives",
)
ONE_BY_ONE = 10


def different_rows(lake: Lake, other: Lake) -> dict[str, int]:
    """Return for each table the rows that only one of two lakes has."""
    return {
        name: load(lake, name).exceptAll(load(other, name)).count()
        + load(other, name).exceptAll(load(lake, name)).count()
        for name in TABLES
    }


def load(lake: Lake, name: str) -> DataFrame:
    """Return a committed table as a reader compares it: without run, and number of a file."""
    df = lake.load(name, Ledger(lake).versions()[lake.key(name)]).drop("run_id", "source")
    return df.withColumn("context", F.to_json("context")) if "context" in df.columns else df


def fit(lake: Lake) -> dict[str, Any]:
    """Return how the items of the newest SLIM were solved."""
    fits = load(lake, "item_fits")
    row = fits.agg(
        F.avg((F.col("iterations") > 0).cast("double")).alias("share_solved"),
        F.sum("objective").alias("objective"),
        F.max("kkt_residual").alias("kkt_residual"),
    ).collect()[0]
    return row.asDict()


def main() -> None:
    given = arguments("events", "users", "items", "days", "work")
    events, users, items, days = (
        int(float(given.get(key, default)))
        for key, default in (("events", 3e6), ("users", 3e5), ("items", 1e4), ("days", 30))
    )
    work = Path(given.get("work") or tempfile.mkdtemp(prefix="recs-increments-"))
    log = SyntheticConfig(
        num_events=events,
        num_users=users,
        num_items=items,
        num_clusters=max(1, items // 50),
        num_days=days,
    )
    write_log(work, log)
    raw, held = work / "raw" / "events", work / "held"
    folders = sorted(path.name for path in raw.iterdir())
    held.mkdir()
    for name in folders[-ONE_BY_ONE:]:
        (raw / name).rename(held / name)

    config = configure(work)
    _, first, _ = run_measured(config, [*PREPARE, "fit/slim"])
    daily = []
    for name in folders[-ONE_BY_ONE:]:
        (held / name).rename(raw / name)
        lake, seconds, _ = run_measured(config, PREPARE)
        daily.append(seconds)
        print(name, seconds, flush=True)
    warm = configure(work, "slim.warm_start=true")
    _, warm_seconds, _ = run_measured(warm, ["fit/slim"])
    warm_fit = fit(lake)
    _, cold_seconds, _ = run_measured(config, ["fit/slim"])
    cold_fit = fit(lake)

    at_once, whole, _ = run_measured(configure(work, f"root={work}/at_once"), PREPARE)
    different = different_rows(lake, at_once)
    _, rebuilt, _ = run_measured(configure(work, "rebuild=true"), PREPARE)
    different |= {f"rebuilt {k}": n for k, n in different_rows(lake, at_once).items() if n}
    shutil.rmtree(work)

    day = {name: sorted(d[name] for d in daily)[ONE_BY_ONE // 2] for name in PREPARE}
    rebuild = {**rebuilt, "ingest": whole["ingest"]}
    figures = {
        "events": events,
        "users": users,
        "items": items,
        "days": days,
        "different_rows": different,
        "first_seconds": first,
        "day_seconds": day,
        "rebuild_seconds": rebuild,
        "at_once_seconds": whole,
        "slim_warm": warm_fit | {"seconds": warm_seconds["fit/slim"]},
        "slim_cold": cold_fit | {"seconds": cold_seconds["fit/slim"]},
    }
    ratio = sum(rebuild.values()) / sum(day.values())
    report("increments", figures, {"rebuild_vs_day": ratio}, given)
    if sum(different.values()):
        raise SystemExit(f"tables differ: {different}")


if __name__ == "__main__":
    main()
