"""``recs generate``: its arguments, its folder, and that the demo's configuration reads it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.cli import main
from pipelines.generate import is_whole, parse


def test_numbers_are_read_as_people_write_them() -> None:
    settings = parse(
        ["data=x", "events=1e9", "users=10_000_000", "first_day=2024-02-29", "bad_share=0"]
    )
    assert (settings.events, settings.users) == (1_000_000_000, 10_000_000)
    assert (settings.first_day, settings.bad_share) == (date(2024, 2, 29), 0.0)


def test_counts_follow_from_events() -> None:
    demo = parse(["data=x"]).scaled()
    assert (demo.events, demo.users, demo.items, demo.clusters) == (150_000, 3_000, 1_000, 20)
    large = parse(["data=x", "events=1e9", "users=1e7"]).scaled()
    assert (large.users, large.items, large.clusters) == (10_000_000, 1_000_000, 1_000)
    assert parse(["data=x", "events=5"]).scaled().users == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["events=1e9"], "add data=FOLDER"),
        (["data=x", "event=9"], "unknown key 'event'; the nearest known key is 'events'"),
        (["data=x", "events"], "must have the form key=value"),
        (["data=x", "events=1.5"], "key 'events': '1.5' is no whole number"),
        (["data=x", "events=inf"], "key 'events': 'inf' is no whole number"),
        (["data=x", "first_day=today"], "key 'first_day': 'today' is no day"),
        (["data=x", "format=orc"], "neither csv nor parquet"),
        (["data=x", "days=0"], "num_days is 0"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1


def test_generated_files_are_ingested_and_not_mixed(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "raw"
    given = [f"data={folder}", "events=2e3", "days=2", "format=parquet", "bad_share=0.05"]
    assert main(["generate", *given, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(document) == {"folder", "rows", "seconds"}
    assert is_whole(str(folder))
    lake = [f"data={folder}", f"root={tmp_path}/lake"]
    read = ["ingest", "--config", "demo.yaml", *lake, "events.sources.0.format=parquet"]
    assert main(read) == 0
    assert main(["tables", "--config", "demo.yaml", *lake, "--json"]) == 0
    tables = json.loads(capsys.readouterr().out.splitlines()[-1])["tables"]
    assert tables["events"]["rows"] == 2_000
    assert tables["events"]["rows"] + tables["quarantine"]["rows"] == document["rows"]["events"]

    assert main(["generate", *given]) == 0
    assert main(["generate", *given, "seed=1"]) == 2
    assert "holds a log generated with seed=42" in capsys.readouterr().err
    (tmp_path / "mine").write_text("something else")
    assert main(["generate", f"data={tmp_path}"]) == 2
    assert "holds other files" in capsys.readouterr().err
