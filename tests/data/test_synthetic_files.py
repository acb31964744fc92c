"""Files of a generated log: their bytes, bad rows, and no dependence on partitions."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from recs.data.synthetic import (
    BAD_KINDS,
    SyntheticConfig,
    SyntheticLog,
    files,
    generate,
    write,
)
from recs.errors import UserError

CONFIG = SyntheticConfig(
    num_events=6_000, num_users=150, num_items=90, num_clusters=9, num_days=5, seed=3
)
BAD_SHARE = 0.2
FIELDS = ["user", "item", "timestamp", "event_type", "weight"]


@pytest.fixture(scope="module")
def log(spark: SparkSession) -> SyntheticLog:
    return generate(spark, CONFIG)


@pytest.fixture(scope="module")
def events(log: SyntheticLog) -> pd.DataFrame:
    """All events as the files hold them, in order of time, user and position."""
    events: pd.DataFrame = log.events.toPandas()
    number = events["user"].str[1:].astype(int)
    order = events.assign(number=number).sort_values(["timestamp", "number", "position"])
    return order[FIELDS].reset_index(drop=True)


@pytest.fixture(scope="module")
def folder(log: SyntheticLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    rows = write(log, str(folder), bad_share=BAD_SHARE)
    assert rows["items"] == 90
    assert rows["users"] == 150
    assert rows["events"] == sum(len(lines) for lines in _lines(folder))
    return folder


def _lines(folder: Path) -> list[list[str]]:
    """Lines of each file of events, in the files' order, without the header."""
    paths = sorted(folder.glob("events/day=*/events-*.csv"))
    return [path.read_text().splitlines()[1:] for path in paths]


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("num_partitions", [1, 5])
def test_files_do_not_depend_on_partitions(
    spark: SparkSession, folder: Path, tmp_path: Path, num_partitions: int
) -> None:
    log = generate(spark, CONFIG, num_partitions=num_partitions)
    write(log, str(tmp_path), bad_share=BAD_SHARE)
    assert _digest(tmp_path) == _digest(folder)


def test_writing_again_mends_and_leaves_the_same_bytes(
    log: SyntheticLog, folder: Path, tmp_path: Path
) -> None:
    write(log, str(tmp_path), bad_share=BAD_SHARE)
    torn = next(tmp_path.glob("events/*/*.csv"))
    torn.write_bytes(torn.read_bytes()[:100])
    left = tmp_path / "_writing" / "of-a-killed-attempt"
    left.parent.mkdir()
    left.write_text("user,it")
    write(log, str(tmp_path), bad_share=BAD_SHARE)
    assert _digest(tmp_path) == _digest(folder)


def test_a_busy_day_has_several_files(
    log: SyntheticLog, events: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_FILE_EVENTS", 500)
    write(log, str(tmp_path))
    assert len(list(tmp_path.glob("events/day=2025-01-03/events-*.csv"))) == 3
    assert len(_lines(tmp_path)) == 15
    assert sorted(sum(_lines(tmp_path), [])) == sorted(
        ",".join(map(str, row)) for row in events.itertuples(index=False)
    )


def test_without_bad_rows_the_files_are_the_events(
    log: SyntheticLog, events: pd.DataFrame, tmp_path: Path
) -> None:
    assert write(log, str(tmp_path))["events"] == len(events)
    read = pd.concat(map(pd.read_csv, sorted(tmp_path.glob("events/*/*.csv"))), ignore_index=True)
    pd.testing.assert_frame_equal(read, events)


def test_every_kind_of_bad_row_is_there(events: pd.DataFrame, folder: Path) -> None:
    kinds: Counter[str] = Counter()
    good: list[str] = []
    for line in sum(_lines(folder), []):
        fields = next(csv.reader([line]))
        if len(fields) != 5:
            kinds[f"{len(fields)} columns"] += 1
            continue
        user, item, time, event_type, weight = fields
        reasons = {
            "empty user": not user,
            "empty item": not item,
            "unparsable": time == "yesterday",
            "future": time.startswith("2099"),
            "ancient": time.startswith("1970"),
            "type": event_type == "teleport",
            "NaN": weight == "NaN",
            "Infinity": weight == "Infinity",
            "negative": weight.startswith("-"),
            "duplicate": bool(good) and line == good[-1],
        }
        if any(reasons.values()):
            kinds.update(reason for reason, holds in reasons.items() if holds)
        else:
            good.append(line)
    assert len(kinds) == len(BAD_KINDS)
    assert min(kinds.values()) > 50
    assert good == [",".join(map(str, row)) for row in events.itertuples(index=False)]
    assert abs(sum(kinds.values()) / len(events) - BAD_SHARE) < 0.03


def test_parquet_holds_the_same_events_and_what_bad_rows_fit_in(
    log: SyntheticLog, events: pd.DataFrame, tmp_path: Path
) -> None:
    rows = write(log, str(tmp_path), bad_share=BAD_SHARE, format="parquet")
    paths = sorted(tmp_path.glob("events/day=*/events-*.parquet"))
    assert [pq.read_schema(path).field("weight").type for path in paths] == ["double"] * 5
    read = pd.concat([pq.ParquetFile(path).read().to_pandas() for path in paths])
    assert list(read.columns) == FIELDS
    assert len(read) == rows["events"]
    good = read[
        (read["user"] != "")
        & (read["item"] != "")
        & read["timestamp"].str.startswith("2025", na=False)
        & (read["event_type"] != "teleport")
        & read["weight"].between(0, 3)
    ]
    duplicates = len(good) - len(events)
    assert duplicates > 50
    assert (
        good.drop_duplicates()
        .reset_index(drop=True)
        .equals(events.drop_duplicates().reset_index(drop=True))
    )


def test_items_and_users_are_described(folder: Path) -> None:
    items = [json.loads(line) for line in (folder / "items/items-00000.jsonl").open()]
    assert [item["item"] for item in items[:3]] == ["i0", "i1", "i2"]
    assert all(item["title"] and item["text"] and item["price"] > 0 for item in items)
    assert Counter(item["category"][0] for item in items) == {f"genre-{c}": 10 for c in range(9)}
    users = pd.read_csv(folder / "users/users-00000.csv")
    assert list(users.columns) == ["user", "age", "gender", "country"]
    assert users["age"].between(16, 75).all()


def test_a_share_out_of_range_is_refused(log: SyntheticLog, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bad_share is 2"):
        write(log, str(tmp_path), bad_share=2)
