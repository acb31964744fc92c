"""Events → ids, interactions: the stages between what was delivered and any model."""

from __future__ import annotations

import logging

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.job import Job, Stage
from recs.data import split, vocabulary
from recs.data.catalogue import catalogue
from recs.data.expectations import require_usual
from recs.data.files import order_of_sources

log = logging.getLogger("recs")

_NEW_USERS = "new_users"  # a detail of runs: the share of a delivery's users that are new


def run_vocabulary(job: Job) -> None:
    """Number new users, items and event types; those numbered before keep their numbers."""
    others = [table for table in ("items", "candidate_lists") if job.run.has(table)]
    if job.run.unchanged("events", *others):
        job.keep(*VOCABULARY.writes)
        return
    new = job.run.read_new("events")
    events = job.read("events") if new is None else new
    day, undated = F.to_date("timestamp").alias("day"), F.lit(None).cast("date").alias("day")
    users, items = events.select("user", day), events.select("item", day)
    if job.run.has("items"):
        items = items.union(job.read("items").select("item", undated))
    if job.run.has("candidate_lists"):
        lists = job.read("candidate_lists")
        users = users.union(lists.select("user", undated))
        items = items.union(lists.select(F.explode("candidates").alias("item"), undated))
    named = [(name,) for name in job.config.events.types]
    types = job.spark.createDataFrame(named, "event_type string").select("event_type", undated)
    numbered = {}
    for key, found in (("user", users), ("item", items), ("event_type", types)):
        known = job.read(f"{key}_ids") if job.run.has(f"{key}_ids") else None
        number = f"{key}_id"
        numbered[f"{key}_ids"] = vocabulary.new_ids(found, known, key=key, number=number)
    if job.run.has("items"):
        _warn_of_unknown_items(events, job.read("items"))
    job.run.write_all(numbered, "append")
    _require_usual_users(job, users)


def _require_usual_users(job: Job, users: DataFrame) -> None:
    """Keep how many of a delivery's users are new, and hold them against those of before."""
    expect = job.config.events.expect
    if expect.max_times is None:
        return
    delivered = users.select("user").distinct().count()
    new = job.read("user_ids").where(F.col("run_id") == job.run.run_id).count()
    before = [
        float(run.details[_NEW_USERS])
        for run in job.run.finished_runs("vocabulary")
        if _NEW_USERS in run.details
    ]
    if delivered:
        job.run.details[_NEW_USERS] = str(new / delivered)
        require_usual(expect, "of users never seen before", new / delivered, before)


def _warn_of_unknown_items(events: DataFrame, items: DataFrame) -> None:
    """Tell where nothing is known of any item with an event: ids are written in two ways."""
    some = events.select("item").limit(1000)
    if not some.isEmpty() and some.join(items, "item", "left_semi").isEmpty():
        log.warning(
            "no item of the events is among the items delivered: compare how ids are written in "
            "tables events and items"
        )


def run_split(job: Job) -> None:
    """Put every event in its split, and count the events of every item.

    Events are read as the newest vocabulary has read them: later ones have no numbers yet. Where a
    user's rows depend on that user's events alone, only users with new events are done.
    """
    config = job.config
    events, user_ids = job.run.read_as_of("vocabulary", "events"), job.read("user_ids")
    if config.as_of is not None:
        moment = F.lit(config.as_of.isoformat()).cast("timestamp")
        events = events.where(F.col("timestamp") < moment)
    if job.run.unchanged("events", "item_ids"):
        job.keep(*SPLIT.writes)
        return
    new = job.run.read_new("events") if split.is_per_user(config.split) else None
    if new is not None:
        user_ids = user_ids.join(new.select("user").distinct(), "user", "left_semi")
    rows = split.interactions(
        split.weighted(events, config.events),
        order_of_sources(job.read("files")),
        user_ids,
        job.read("item_ids"),
        config.split,
        num_items=job.num_items(),
        hold_out=config.mode == "backtest",
        files_give_validation=any(s.held_out == "validation" for s in config.events.sources),
        seed=config.seed,
    )
    with split.telling_unknown_types():
        if new is None and not job.write("interactions", rows):
            split.require_some(events.count(), config.split)
        elif new is not None:
            job.run.replace("interactions", rows, gone=user_ids.select("user_id"))
    job.write("catalogue", catalogue(job.read("interactions"), job.read("item_ids")))


VOCABULARY = Stage(
    "vocabulary",
    "Number new users and items.",
    reads=("events", "items", "candidate_lists"),
    writes=("user_ids", "item_ids", "event_type_ids"),
    settings=("events.types",),
    work=run_vocabulary,
    shared=True,
)
SPLIT = Stage(
    "split",
    "Order events and put each in training, validation or test.",
    reads=("events", "files", "user_ids", "item_ids"),
    writes=("interactions", "catalogue"),
    settings=(
        "mode",
        "seed",
        "as_of",
        "events.types",
        "events.default_type",
        "events.sources.*.held_out",
        "split",
    ),
    work=run_split,
)
