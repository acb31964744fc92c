"""Fitted models → the top items of every user."""

from __future__ import annotations

import json
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.inputs import bounded_batches, open_catalogue, read_histories
from pipelines.job import Job, Stage
from pipelines.models import MODEL_TABLES, MODELS
from recs.lake import LakeError
from recs.ranking.catalogue import write_names
from recs.ranking.jobs import recommend
from recs.storage import join

_LISTED = "listed"  # a detail of runs: the fit of each model

#: What decides, beside the models' fits, which items lists may hold and what they are scored from.
LIST_SETTINGS = ("split.recommendable", "events.types", "slim.values", "recommend.exclude_seen")


def run_recommend(job: Job) -> None:
    """Write every model's list of every user; popularity serves users without history."""
    settings = job.config.recommend
    catalogue, item_ids = open_catalogue(job), job.read("item_ids")
    names = write_names(item_ids, join(job.work_folder, "names"), job.num_items())
    users = job.read("user_ids").select("user_id", "user")
    fallback = MODELS["popularity"].open(job)
    lists, versions = [], {}
    for name in job.config.models:
        model = MODELS[name]
        found = recommend(
            read_histories(job, model.values(job)).join(users, "user_id"),
            fallback if name == "popularity" else model.open(job),
            k=settings.k,
            catalogue=catalogue,
            why=settings.why,
            fallback=None if name == "popularity" else fallback,
            names=names,
        )
        versions[name] = model.version(job)
        lists.append(found.withColumn("model_version", F.lit(versions[name])))
    with bounded_batches(job.spark):
        job.write("recommendations", reduce(DataFrame.unionByName, lists))
    job.run.details[_LISTED] = json.dumps(versions)
    job.note_settings(LIST_SETTINGS)
    job.note_splits(job.fit_splits)


def require_lists(job: Job, versions: dict[str, str]) -> None:
    """Refuse lists that other fits of the models than ``versions``, or other rules, have made.

    Raises
    ------
    LakeError
        If a model has no list, or that of another fit, ``evaluate.split`` or interactions; or if
        one of :data:`LIST_SETTINGS` was another.
    """
    made = job.run.newest("recommend")
    listed = {} if made is None else json.loads(made.details[_LISTED])
    for name, version in versions.items():
        if listed.get(name) != version:
            raise LakeError(
                f"the lists of {name} are not of its last fit (run {version}): run the stage "
                "recommend again, with it among models"
            )
    job.require_fitted("recommend", "recommendations")
    job.require_settings("recommend", LIST_SETTINGS)


RECOMMEND = Stage(
    "recommend",
    "Write the top items of every user.",
    reads=(
        "interactions",
        "catalogue",
        "user_ids",
        "item_ids",
        *MODEL_TABLES,
    ),
    writes=("recommendations",),
    settings=(
        "mode",
        "models",
        *LIST_SETTINGS,
        "recommend",
        "evaluate",
    ),
    work=run_recommend,
)
