"""Ingest, sequences and negatives of a large generated log, and DuckDB making the same sequences.

``python benchmarks/sequences.py [events=2e7] [users=4e5] [items=1e5] [heavy=1e7] [work=FOLDER]
[keep=true]``

All is done in one running Spark session by the stages that a user runs, in mode ``serve``; seconds
are those of the ledger, commits included. DuckDB reads the same committed interactions and writes
the same rows, which are compared. Then half of the events come from one user, and what the
processes take at most is measured again.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import duckdb
from common import arguments, report
from generated import configure, run_measured, write_log
from pyspark.sql import DataFrame

from recs.data.synthetic import SyntheticConfig
from recs.lake import Lake
from recs.ledger import Ledger

LENGTH = 50
PER_POSITIVE = 4
MEASURED = ("ingest", "vocabulary", "split", "sequences", "positives", "negatives")

#: The same rows as ``recs sequences``: the last LENGTH events.
_DUCKDB = """
COPY (
    WITH numbered AS (
        SELECT user_id, sequence, item_id, event_type_id,
            epoch("timestamp")::BIGINT AS second,
            row_number() OVER (PARTITION BY user_id ORDER BY sequence DESC) AS back,
            epoch("timestamp")::BIGINT - lag(epoch("timestamp")::BIGINT)
                OVER (PARTITION BY user_id ORDER BY sequence) AS gap
        FROM read_parquet($files) JOIN types USING (event_type)
    ), listed AS (
        SELECT user_id, max(sequence) AS last, count(*)::INT AS length,
            list(item_id ORDER BY sequence) AS items,
            list(event_type_id ORDER BY sequence) AS event_types,
            list(coalesce(gap, 0)::INT ORDER BY sequence) AS gaps
        FROM numbered WHERE back <= {length} GROUP BY user_id
    )
    SELECT user_id, 'train' AS upto, 0 AS session, last, length, items, event_types, gaps
    FROM listed
) TO '{target}' (FORMAT parquet)
"""


def duckdb_sequences(lake: Lake, work: Path) -> float:
    """Make the sequences in DuckDB from the committed files, compare them, return seconds."""
    versions = Ledger(lake).versions()

    def load(table: str) -> DataFrame:
        return lake.load(table, versions[lake.key(table)])

    target = work / "duckdb.parquet"
    files = [name.removeprefix("file://") for name in load("interactions").inputFiles()]
    with duckdb.connect() as db:
        db.execute(f"SET temp_directory = '{work}/duckdb'")
        types = load("event_type_ids").select("event_type", "event_type_id").toPandas()
        db.register("types", types)
        started = time.perf_counter()
        db.execute(_DUCKDB.format(length=LENGTH, target=target), {"files": files})
        seconds = time.perf_counter() - started
    ours = load("sequences").drop("run_id")
    theirs = lake.spark.read.parquet(str(target)).select(*ours.columns)
    different = ours.exceptAll(theirs).count() + theirs.exceptAll(ours).count()
    if different:
        raise SystemExit(f"{different} rows of DuckDB's sequences are not those of recs")
    return seconds


def main() -> None:
    given = arguments("events", "users", "items", "heavy", "work")
    events, users, items, heavy = (
        int(float(given.get(key, default)))
        for key, default in (("events", 2e7), ("users", 4e5), ("items", 1e5), ("heavy", 1e7))
    )
    work = Path(given.get("work") or tempfile.mkdtemp(prefix="recs-sequences-"))
    log = SyntheticConfig(
        num_events=events, num_users=users, num_items=items, num_clusters=max(1, items // 50)
    )

    overrides = f"sequences.length={LENGTH}", f"negatives.per_positive={PER_POSITIVE}"
    # A running session: workers are up, and what is compiled on first use is compiled.
    write_log(work / "warm", replace(log, num_events=1_000_000, num_users=20_000))
    run_measured(configure(work / "warm", *overrides), MEASURED)
    shutil.rmtree(work / "warm")

    generating = write_log(work / "plain", log)
    lake, seconds, peaks = run_measured(configure(work / "plain", *overrides), MEASURED)
    rows = {name: Ledger(lake).newest(name).rows for name in MEASURED}  # type: ignore[union-attr]
    accepted, positives = rows["ingest"]["events"], rows["negatives"]["serve/negatives"]
    duckdb_seconds = duckdb_sequences(lake, work)
    shutil.rmtree(work / "plain")
    figures: dict[str, object] = {
        "events": events,
        "users": users,
        "items": items,
        "generated_events_per_s": round(events / generating),
        "ingest_events_per_s": round(accepted / seconds["ingest"]),
        "sequences_events_per_s": round(accepted / seconds["sequences"]),
        "negatives_per_s": round(PER_POSITIVE * positives / seconds["negatives"]),
        "seconds": seconds,
        "duckdb_seconds": duckdb_seconds,
        "peak_gib": peaks,
    }
    if heavy:
        skewed = replace(log, num_events=events - heavy, heavy_user_events=heavy)
        write_log(work / "heavy", skewed)
        _, seconds_with, peaks_with = run_measured(configure(work / "heavy", *overrides), MEASURED)
        figures |= {"seconds_with_heavy_user": seconds_with, "peak_gib_with_heavy_user": peaks_with}
        shutil.rmtree(work / "heavy")
    ratios = {"sequences_vs_duckdb": duckdb_seconds / seconds["sequences"]}
    report("sequences", figures, ratios, given)


if __name__ == "__main__":
    main()
