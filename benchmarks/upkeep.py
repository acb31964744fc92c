"""How tables and the ledger grow: ten days of changed users with and without upkeep, 4,000 runs.

Each day 28% of the users get other rows in place of theirs. A scan reads the rows in files, those
deleted among them. ``python benchmarks/upkeep.py [users=100000] [days=10] [runs=4000]``
"""

from __future__ import annotations

import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
from common import arguments, report
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.job import run_stage
from pipelines.resources import conf_folder
from pipelines.upkeep import UPKEEP
from recs import readers
from recs.config import Config, load_config
from recs.lake import Lake, Location
from recs.ledger import Ledger
from recs.runs import Run
from recs.session import get_session

TABLE = "user_positives"
CHANGED = 0.28
ROWS_A_FILE = 64  # of the ledger, when it is compacted


def positives(spark: SparkSession, users: int, day: int) -> DataFrame:
    """Return the users that a day changes, all on day 0, with lists of 50 items."""
    rows = spark.range(users).select(F.col("id").cast("int").alias("user_id"))
    if day:
        chosen = F.pmod(F.xxhash64("user_id", F.lit(day)), F.lit(10_000)) < 10_000 * CHANGED
        rows = rows.where(chosen)
    items = F.transform(F.sequence(F.lit(1), F.lit(50)), lambda n: n * 7 + F.lit(day))
    none = F.lit(None).cast("array<int>")
    lists = {"train": items, "validation": none, "test": none}
    return rows.select("user_id", *(column.alias(name) for name, column in lists.items()))


def rows_in_files(df: DataFrame) -> int:
    return sum(pq.read_metadata(unquote(urlsplit(file).path)).num_rows for file in df.inputFiles())


def grow(spark: SparkSession, root: Path, users: int, days: int, config: Config | None) -> dict:
    """Change users day by day, with ``recs upkeep`` at night if a configuration is given."""
    lake = Lake(spark, Location(str(root)), "serve")
    grown, upkeep, replace = [], [], []
    for day in range(days + 1):
        changed = positives(spark, users, day)
        started = time.perf_counter()
        with Run(lake, "positives", f"day-{day:02}", config_hash="c") as run:
            if day:
                run.replace(TABLE, changed, gone=changed.select("user_id"))
            else:
                run.write(TABLE, changed)
        replace.append(round(time.perf_counter() - started, 2))
        table = readers.read(lake, TABLE)
        grown.append(round(rows_in_files(table) / table.count(), 3))
        if config is not None:
            started = time.perf_counter()
            run_stage(UPKEEP, lake, config, f"night-{day:02}")
            upkeep.append(round(time.perf_counter() - started, 2))
    return {"rows_in_files_vs_live": grown, "day_seconds": replace, "upkeep_seconds": upkeep}


def read_ledger(spark: SparkSession, root: Path, runs: int) -> dict:
    """Return seconds to read a ledger of so many rows in a session at work, as it is kept.

    What ``recs`` has put together is written at once here; the rows since are appended one by one.
    """
    lake = Lake(spark, Location(str(root)), "serve")
    last, ledger = runs % ROWS_A_FILE or ROWS_A_FILE, Ledger(lake)
    with Run(lake, "stage", "first", config_hash="c", settings='{"slim": {"l1": 5.0}}' * 20):
        pass
    first = lake.rows("runs", lake.newest("runs") or 0)[0].asDict()
    rows = [
        first | {"sequence": n, "run_id": f"r{n}", "started_at": datetime.now(UTC)}
        for n in range(1, runs - last)
    ]
    schema = lake.load("runs").schema
    lake.save("runs", spark.createDataFrame(rows, schema).coalesce(1), "append")
    appended = []
    for n in range(last):
        started = time.perf_counter()
        ledger.append(first | {"run_id": f"s{n}", "started_at": datetime.now(UTC)})
        appended.append(time.perf_counter() - started)
    times = []
    for _ in range(3):
        fresh = Lake(spark, Location(str(root)), "serve")
        started = time.perf_counter()
        found = Ledger(fresh).rows()
        times.append(time.perf_counter() - started)
    assert [row["sequence"] for row in found] == list(range(runs))
    return {
        "ledger_rows": runs,
        "ledger_files": lake.files("runs")[0],
        "read_seconds": sorted(round(seconds, 2) for seconds in times),
        "append_seconds_median": round(sorted(appended)[len(appended) // 2], 2),
    }


def main() -> None:
    given = arguments("users", "days", "runs")
    users, days, runs = (
        int(float(given.get(key, default)))
        for key, default in (("users", 1e5), ("days", 10), ("runs", 4000))
    )
    spark = get_session()
    work = Path(tempfile.mkdtemp(prefix="recs-upkeep-"))
    try:
        overrides = [f"root={work}/kept", "data=x", "mode=serve"]
        config = load_config(conf_folder() / "demo.yaml", overrides)
        kept = grow(spark, work / "kept", users, days, config)
        left = grow(spark, work / "left", users, days, None)
        ledger = read_ledger(spark, work / "ledger", runs)
    finally:
        shutil.rmtree(work)
    figures = {"users": users, "with_upkeep": kept, "without": left, "ledger": ledger}
    last = [grown["rows_in_files_vs_live"][-1] for grown in (left, kept)]
    report("upkeep", figures, {"rows_in_files_without_vs_with": last[0] / last[1]}, given)


if __name__ == "__main__":
    main()
