"""The generated log: sizes and planted structure."""

from __future__ import annotations

import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.data.synthetic import MIN_USER_EVENTS, SyntheticConfig, SyntheticLog, generate

CONFIG = SyntheticConfig(
    num_events=6_000, num_users=150, num_items=90, num_clusters=9, num_days=5, seed=3
)


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


def test_heavy_user_comes_on_top(spark: SparkSession, events: pd.DataFrame) -> None:
    config = SyntheticConfig(**{**vars(CONFIG), "heavy_user_events": 12_000})
    with_heavy = _pandas(generate(spark, config).events)
    with_heavy = with_heavy.sort_values(["user", "position"], ignore_index=True)
    heavy = with_heavy["user"] == config.heavy_user
    # More than one chunk of a user's events, without a gap or a repeated position.
    assert with_heavy[heavy]["position"].tolist() == list(range(12_000))
    assert with_heavy[heavy]["timestamp"].is_monotonic_increasing
    others = with_heavy[~heavy].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, events.drop(columns="cluster"))


def test_many_tasks_share_a_heavy_user(spark: SparkSession) -> None:
    config = SyntheticConfig(num_events=50, num_users=1, num_items=20, heavy_user_events=200_000)
    log = generate(spark, config, num_partitions=4)
    tasks = log.coded.groupBy(F.spark_partition_id()).count().collect()
    assert len(tasks) == 4
    assert max(row["count"] for row in tasks) < 120_000


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
