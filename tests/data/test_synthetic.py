"""The generated log: sizes, planted structure, bad rows, and no dependence on partitions."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.data.synthetic import MIN_USER_EVENTS, SyntheticConfig, SyntheticLog, generate, write

CONFIG = SyntheticConfig(
    num_events=6_000, num_users=150, num_items=90, num_clusters=9, num_days=5, seed=3
)
BAD_SHARE = 0.2


def _pandas(frame: DataFrame) -> pd.DataFrame:
    return frame.toPandas()


@pytest.fixture(scope="module")
def log(spark: SparkSession) -> SyntheticLog:
    return generate(spark, CONFIG)


@pytest.fixture(scope="module")
def events(log: SyntheticLog) -> pd.DataFrame:
    """All events in the users' order, with the item's cluster."""
    events = _pandas(log.events).sort_values(["user", "position"], ignore_index=True)
    items = _pandas(log.items)
    cluster = dict(zip(items["item"], items["category"].str[0], strict=True))
    return events.assign(cluster=events["item"].map(cluster))


@pytest.fixture(scope="module")
def folder(log: SyntheticLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    lines = write(log, str(folder), bad_share=BAD_SHARE)
    assert lines["items"] == 90
    assert lines["users"] == 150
    return folder


def _lines(folder: Path) -> list[str]:
    return [
        line
        for path in sorted(folder.glob("events/day=*/events.csv"))
        for line in path.read_text().splitlines()[1:]
    ]


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("num_partitions", [1, 3, 8])
def test_files_do_not_depend_on_partitions(
    spark: SparkSession, folder: Path, tmp_path: Path, num_partitions: int
) -> None:
    write(
        generate(spark, CONFIG, num_partitions=num_partitions), str(tmp_path), bad_share=BAD_SHARE
    )
    assert _digest(tmp_path) == _digest(folder)


def test_another_seed_is_another_log(spark: SparkSession, events: pd.DataFrame) -> None:
    other = _pandas(generate(spark, SyntheticConfig(**{**vars(CONFIG), "seed": 4})).events)
    assert len(other) == len(events)
    other = other.sort_values(["user", "position"], ignore_index=True)
    assert (other["item"] == events["item"]).mean() < 0.2


def test_counts_and_skew(events: pd.DataFrame) -> None:
    per_user = events.groupby("user").size()
    assert len(events) == CONFIG.num_events
    assert len(per_user) == CONFIG.num_users
    assert per_user.min() >= MIN_USER_EVENTS
    assert per_user.max() > 5 * per_user.median()
    per_item = events.groupby("item").size().sort_values(ascending=False)
    assert per_item.head(9).sum() > 0.25 * len(events)  # one item in ten
    assert events["day"].nunique() == CONFIG.num_days


def test_users_events_are_in_time_order(events: pd.DataFrame) -> None:
    times = pd.to_datetime(events["timestamp"])
    assert (times.dt.date == events["day"]).all()
    gaps = times.groupby(events["user"]).diff().dropna()
    assert (gaps >= pd.Timedelta(0)).all()
    assert (events.groupby("user").cumcount() == events["position"]).all()


def test_rules_are_planted(log: SyntheticLog, events: pd.DataFrame) -> None:
    rules = _pandas(log.rules)
    assert set(rules["item"]) == set(rules["next_item"]) == set(_pandas(log.items)["item"])
    following = dict(zip(rules["item"], rules["next_item"], strict=True))
    odd = events["position"] % 2 == 1
    followed = events["item"] == events["item"].shift().map(following)
    assert CONFIG.follow_share - 0.05 < followed[odd].mean() < CONFIG.follow_share + 0.1
    assert followed[~odd].mean() < 0.2


def test_users_keep_to_few_clusters(events: pd.DataFrame) -> None:
    shares = events.groupby("user")["cluster"].value_counts(normalize=True)
    top_three = shares.groupby("user").nlargest(3).groupby("user").sum()
    assert top_three.mean() > 0.9


def test_dislikes_fall_outside_of_the_users_clusters(events: pd.DataFrame) -> None:
    share = events.groupby(["user", "cluster"])["item"].transform("size") / events.groupby("user")[
        "item"
    ].transform("size")
    disliked = events["event_type"] == "dislike"
    assert (share[disliked] < 0.1).mean() > 5 * (share[~disliked] < 0.1).mean()
    assert set(events["event_type"]) == {"view", "like", "purchase", "dislike"}


def test_without_bad_rows_the_files_are_the_events(
    log: SyntheticLog, events: pd.DataFrame, tmp_path: Path
) -> None:
    assert write(log, str(tmp_path))["events"] == len(events)
    read = pd.concat(map(pd.read_csv, tmp_path.glob("events/*/*.csv")))
    key = ["user", "timestamp", "item"]
    expected = events.sort_values(key)[list(read.columns)]
    pd.testing.assert_frame_equal(
        read.sort_values(key, ignore_index=True), expected.reset_index(drop=True)
    )


def test_days_are_sorted_and_have_headers(tmp_path: Path, folder: Path) -> None:
    for path in folder.glob("events/day=*/events.csv"):
        header, *lines = path.read_text().splitlines()
        assert header == "user,item,timestamp,event_type,weight"
        good = [time for _, _, time, *_ in map(_split, lines) if time[:10] == path.parent.name[4:]]
        assert good == sorted(good)


def _split(line: str) -> list[str]:
    return [*next(csv.reader([line])), "", "", ""]


def test_every_kind_of_bad_row_is_there(events: pd.DataFrame, folder: Path) -> None:
    kinds: Counter[str] = Counter()
    good: list[str] = []
    for line in _lines(folder):
        fields = line.split(",")
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
    assert len(kinds) == 12
    assert min(kinds.values()) > 50
    assert len(good) == len(events)
    assert abs(sum(kinds.values()) / len(events) - BAD_SHARE) < 0.03


def test_items_and_users_are_described(folder: Path) -> None:
    items = [json.loads(line) for line in (folder / "items/items-00000.jsonl").open()]
    assert [item["item"] for item in items[:3]] == ["i0", "i1", "i2"]
    assert all(item["title"] and item["text"] and item["price"] > 0 for item in items)
    assert Counter(item["category"][0] for item in items) == {f"genre-{c}": 10 for c in range(9)}
    users = pd.read_csv(folder / "users/users-00000.csv")
    assert list(users.columns) == ["user", "age", "gender", "country"]
    assert users["age"].between(16, 75).all()


def test_heavy_user_comes_on_top(spark: SparkSession, events: pd.DataFrame) -> None:
    config = SyntheticConfig(**{**vars(CONFIG), "heavy_user_events": 2_000})
    log = generate(spark, config)
    with_heavy = _pandas(log.events)
    heavy = with_heavy["user"] == config.heavy_user
    assert heavy.sum() == 2_000
    others = with_heavy[~heavy].sort_values(["user", "position"], ignore_index=True)
    pd.testing.assert_frame_equal(others, events.drop(columns="cluster"))


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"num_events": 749}, "num_events is 749; 150 users need at least 750"),
        ({"num_clusters": 91}, "num_clusters"),
        ({"follow_share": 1.2}, "follow_share"),
        ({"follow_share": 0.6, "repeat_share": 0.6}, "follow_share \\+ repeat_share"),
        ({"heavy_user_events": -1}, "heavy_user_events"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**{**vars(CONFIG), **setting})
