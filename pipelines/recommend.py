"""Fitted models → the top items of every user."""

from __future__ import annotations

from pyspark.sql import functions as F

from pipelines.inputs import bounded_batches, open_catalogue, read_histories
from pipelines.job import Job, Stage
from pipelines.models import MODELS, PipelineModel
from recs.lake import LakeError
from recs.ranking.catalogue import write_names
from recs.ranking.jobs import recommend
from recs.schema import part
from recs.storage import join

_LISTED = "listed"  # a detail of runs: the fit of the model

#: What serves users to whom a model says nothing.
FALLBACK = MODELS["popularity"]

#: What decides, beside the models' fits, which items lists may hold and what they are scored from.
LIST_SETTINGS = ("split.recommendable", "events.types", "slim.values", "recommend.exclude_seen")


def run_recommend(job: Job) -> None:
    """Write the model's list of every user; popularity serves users without history."""
    assert job.model is not None
    settings, model = job.config.recommend, MODELS[job.model]
    version = model.version(job)
    catalogue, item_ids = open_catalogue(job), job.read("item_ids")
    names = write_names(item_ids, join(job.work_folder, "names"), job.num_items())
    users = job.read("user_ids").select("user_id", "user")
    lists = recommend(
        read_histories(job, model.values(job)).join(users, "user_id"),
        model.open(job),
        k=settings.k,
        catalogue=catalogue,
        why=settings.why,
        fallback=None if model is FALLBACK else FALLBACK.open(job),
        names=names,
    )
    with bounded_batches(job.spark):
        job.write("recommendations", lists.withColumn("model_version", F.lit(version)))
    job.run.details[_LISTED] = version
    job.note_settings(LIST_SETTINGS)
    job.note_splits(job.fit_splits)


def require_lists(job: Job, model: str, version: str) -> None:
    """Refuse lists that another fit of a model than ``version``, or other rules, have made.

    Raises
    ------
    LakeError
        If the model has no list, or that of another fit, ``evaluate.split`` or interactions; or if
        one of :data:`LIST_SETTINGS` was another.
    """
    made = job.run.newest("recommend", model)
    if made is None or made.details[_LISTED] != version:
        raise LakeError(
            f"the lists of {model} are not of its last fit (run {version}): run the stage "
            f"recommend/{model} again"
        )
    job.require_fitted("recommend", model, "recommendations")
    job.require_settings("recommend", model, LIST_SETTINGS)


def recommend_stage(model: PipelineModel) -> Stage:
    """Return the stage that writes a model's lists."""
    reads = ("interactions", "catalogue", "user_ids", "item_ids", *model.tables, *FALLBACK.tables)
    return Stage(
        "recommend",
        "Write a model's top items of every user.",
        reads=tuple(dict.fromkeys(reads)),
        writes=(part("recommendations", model.name),),
        settings=("mode", *LIST_SETTINGS, "recommend", "evaluate.split"),
        work=run_recommend,
        model=model.name,
    )
