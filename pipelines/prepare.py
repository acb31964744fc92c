"""Raw events → events, ids, interactions: the stages before any model."""

from __future__ import annotations

import json
import logging
from datetime import UTC

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.job import Job, Stage
from recs.config import NETWORKS
from recs.data import entities, histories, ingest, split, vocabulary
from recs.lake import LakeError
from recs.runs import Ledger
from recs.storage import copy_tree, folder_name, join, keep_in_folder, new_folder

log = logging.getLogger("recs")


def run_ingest(job: Job) -> None:
    """Read what is new of the events, and items, users and candidate lists as they are now."""
    checkpoint = folder_name(f"{job.run.run_id}-{job.run.attempt}")
    all_runs = job.lake.location.work("checkpoints")
    folder = join(all_runs, checkpoint)
    with new_folder(folder):
        _read_events(job, folder)
        _entities(job)
    # By its name, for a lake may be moved or copied.
    job.run.details["checkpoint"] = checkpoint
    job.run.after_commit(lambda: keep_in_folder(all_runs, checkpoint))


def _read_events(job: Job, checkpoints: str) -> None:
    config, run = job.config, job.run
    last = Ledger(job.lake).newest("ingest")
    if last is not None:
        known = job.lake.location.work("checkpoints", last.details["checkpoint"])
        if not copy_tree(known, checkpoints):
            raise LakeError(
                f"{known} is missing, where run {last.run_id} has noted which files were read: put "
                "it back from a copy of the lake, or take a new root"
            )
    run.keep("events")
    run.keep("quarantine")
    counts = ingest.Counts(0, {}, {})
    now = run.started_at.astimezone(UTC).replace(tzinfo=None)
    for source in config.events.sources:
        path = config.locate(source)

        def handle(batch: DataFrame, source=source) -> None:  # type: ignore[no-untyped-def]
            nonlocal counts
            # Parsed once and read four times; on disk, for memory is dearer.
            parsed = ingest.parse(batch, source, config.events, now=now)
            parsed = parsed.persist(StorageLevel.DISK_ONLY)
            known = run.read("events") if run.rows_before("events") else None
            marked = ingest.mark_duplicates(parsed, source, known)
            accepted, rejected = ingest.split_accepted(marked)
            quarantine = rejected.persist()
            found = ingest.count(job.write("events", accepted, "append"), quarantine)
            if found.rejected:
                job.write("quarantine", quarantine, "append")
            quarantine.unpersist()
            parsed.unpersist()
            counts += found

        folder = ingest.checkpoint_folder(checkpoints, path)
        ingest.each_new_batch(job.spark, source, path, folder, handle)
    counts.require(config.events.max_reject_share)
    run.details["rejected"] = json.dumps(counts.rejected)
    level = logging.WARNING if counts.rejected else logging.INFO
    log.log(level, "events read", extra={"accepted": counts.accepted, **counts.rejected})


def _entities(job: Job) -> None:
    config = job.config
    for item_source in config.items:
        new = entities.items(job.spark, item_source, config.locate(item_source))
        old = job.read("items") if job.run.rows_before("items") else None
        job.write("items", entities.newest(old, new, "item"))
    for user_source in config.users:
        new = entities.users(job.spark, user_source, config.locate(user_source))
        old = job.read("users") if job.run.rows_before("users") else None
        job.write("users", entities.newest(old, new, "user"))
    lists = [
        entities.candidate_lists(job.spark, source, config.locate(source))
        for source in config.candidates
    ]
    for number, df in enumerate(lists):
        job.write("candidate_lists", df, "append" if number else "overwrite")


def run_vocabulary(job: Job) -> None:
    """Number new users, items and event types; those numbered before keep their numbers."""
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
    job.run.write_all(numbered, "append")


def run_split(job: Job) -> None:
    """Put every event in its split, and name the items that may be recommended.

    Where a user's rows depend on that user's events alone, only users with new events are done.
    """
    config = job.config
    events, user_ids = job.read("events"), job.read("user_ids")
    new = job.run.read_new("events") if split.is_per_user(config.split) else None
    if new is not None:
        user_ids = user_ids.join(new.select("user").distinct(), "user", "left_semi")
    rows = split.interactions(
        events,
        user_ids,
        job.read("item_ids"),
        config.split,
        hold_out=config.mode == "backtest",
        files_give_validation=any(s.held_out == "validation" for s in config.events.sources),
        seed=config.seed,
    )
    if new is None:
        job.write("interactions", rows)
    else:
        job.run.replace("interactions", rows, gone=user_ids.select("user_id"))
    # What is known before the test, whichever split is evaluated.
    known = ("train", "validation")
    named = split.catalogue(
        job.read("interactions"), job.read("item_ids"), known, config.split.recommendable
    )
    job.write("catalogue", named)


def read_histories(job: Job, values: str = "binary") -> DataFrame:
    """Return what models read of each user, of the splits that they are fitted on.

    Parameters
    ----------
    values
        ``binary``, ``weight``, or the name of a network, whose vectors of users are added; a user
        without one has no history to the network.
    """
    read = histories.histories(
        job.read("interactions"),
        job.fit_splits,
        "weight" if values == "weight" else "binary",
        exclude_seen=job.config.recommend.exclude_seen,
        shown=job.config.events.shown,
    )
    if values not in NETWORKS:
        return read
    embedded = job.read("user_embeddings").where(F.col("model") == values)
    read = read.join(embedded.select("user_id", "vector"), "user_id", "left")
    unread = F.col("vector").isNull()
    return read.withColumns(
        {
            name: F.when(unread, F.array().cast(read.schema[name].dataType)).otherwise(F.col(name))
            for name in ("history", "values")
        }
    )


INGEST = Stage(
    "ingest",
    "Read new events, items, users and candidate lists; put bad rows in quarantine.",
    reads=("events",),
    writes=("events", "quarantine", "items", "users", "candidate_lists"),
    settings=("events", "items", "users", "candidates", "data", "folder"),
    work=run_ingest,
    shared=True,
)
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
    reads=("events", "user_ids", "item_ids"),
    writes=("interactions", "catalogue"),
    settings=("mode", "seed", "events.sources", "split"),
    work=run_split,
)
