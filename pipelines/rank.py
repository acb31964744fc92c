"""Held-out targets ranked by a model, and the metrics of its ranks, judgements and lists."""

from __future__ import annotations

import logging

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.inputs import bounded_batches, open_catalogue, read_histories
from pipelines.job import Job, Stage
from pipelines.models import MODELS, PipelineModel
from pipelines.recommend import require_lists
from recs.config import NETWORKS
from recs.data.histories import with_candidates
from recs.evaluation.lists import ItemCategories, evaluate_lists, write_categories
from recs.evaluation.ranks import shortages, sum_ranks
from recs.evaluation.relevance import RELEVANCE, judge, relevance_metrics
from recs.lake import LakeError
from recs.ranking.catalogue import ItemCatalogue
from recs.ranking.jobs import rank
from recs.ranking.protocols import RankingProtocol
from recs.schema import part
from recs.storage import join

log = logging.getLogger("recs")

RANKED = "ranked"  # a detail of runs: the fit of the model

#: What decides, beside the model's fit and its lists, what is ranked and measured.
RANK_SETTINGS = ("seed", "evaluate.split", "evaluate.protocols", "evaluate.ks", "evaluate.ties")


def run_rank(job: Job) -> None:
    """Rank and judge what was held out, then derive every metric from that and the lists."""
    assert job.model is not None
    settings, model = job.config.evaluate, MODELS[job.model]
    require_targets(job)
    version = model.version(job)
    require_lists(job, model.name, version)
    _warn_of_short_lists(job)
    catalogue = open_catalogue(job)
    users = read_histories(job, model.values(job), held_out=settings.split)
    candidate_lists = _candidate_lists(job)
    if candidate_lists is not None:
        users = with_candidates(users, candidate_lists)
    users = job.persist(users)
    opened = model.open(job)
    of_model = {"model_version": F.lit(version), "split": F.lit(settings.split)}
    protocols = [
        RankingProtocol(name, job.config.seed) for name in settings.protocols if name != RELEVANCE
    ]
    ranks = rank(users, [opened], protocols, catalogue=catalogue)
    with bounded_batches(job.spark):
        job.write("ranks", ranks.withColumns(of_model))
    _warn_of_shortages(job)
    if RELEVANCE in settings.protocols:
        judged = judge(users, [opened], catalogue, job.config.seed)
        with bounded_batches(job.spark):
            job.write("judgements", judged.withColumns(of_model))
    else:
        job.clear("judgements")
    metrics = _metrics(job, model, catalogue).withColumn("model_version", F.lit(version))
    job.write("metrics", metrics, "append")
    job.run.details[RANKED] = version
    job.note_settings(RANK_SETTINGS)
    job.note_splits(job.fit_splits)


def _metrics(job: Job, model: PipelineModel, catalogue: ItemCatalogue) -> DataFrame:
    """Return the metrics of what the run has written, and of the model's lists."""
    settings, seed = job.config.evaluate, job.config.seed
    totals = sum_ranks(
        job.read("ranks"),
        settings.ks,
        ties=settings.ties,
        replicates=settings.bootstrap,
        seed=seed,
    )
    of_lists = evaluate_lists(
        # The fallback's lists are not the model's: of those users accuracy counts nothing either.
        job.read("recommendations").where(~F.col("fallback")),
        catalogue,
        _categories(job),
        ks=settings.ks,
        split=settings.split,
        replicates=settings.bootstrap,
        seed=seed,
    )
    metrics = totals.metrics(job.spark).unionByName(of_lists)
    if RELEVANCE not in settings.protocols:
        return metrics
    judged = relevance_metrics(
        job.read("judgements"),
        settings.split,
        logits={model.name} & set(NETWORKS),
        replicates=settings.bootstrap,
        seed=seed,
    )
    return metrics.unionByName(judged)


def _warn_of_short_lists(job: Job) -> None:
    """Say if lists are shorter than what coverage and the like are measured over."""
    most, k = max(job.config.evaluate.ks), job.config.recommend.k
    if most > k:
        log.warning(
            "evaluate.ks goes up to %s, lists hold %s items: what is measured of lists at more is "
            "that at %s; give recommend.k=%s, or lower ks",
            *(most, k, k, most),
        )


def _warn_of_shortages(job: Job) -> None:
    """Say of which protocols some users had fewer candidates than the protocol's number."""
    protocols = [name for name in job.config.evaluate.protocols if name != RELEVANCE]
    sampled = {name: RankingProtocol(name).num_negatives for name in protocols}
    for short in shortages(job.read("ranks"), {name: num for name, num in sampled.items() if num}):
        log.warning("%s", short)


def require_targets(job: Job) -> None:
    """Refuse to measure where nothing is held out.

    Raises
    ------
    LakeError
        If the split that is evaluated has no positive event.
    """
    name = job.config.evaluate.split
    if job.read("interactions").where(F.col("positive") & (F.col("split") == name)).isEmpty():
        raise LakeError(
            f"no positive event is held out as {name}: mend `split` in the config, and run the "
            "stages from split on again"
        )


def _candidate_lists(job: Job) -> DataFrame | None:
    if not job.has("candidate_lists"):
        return None
    item_ids = job.read("item_ids").select("item", "item_id")
    # Of later lists users and candidates may have no number yet, and would be missed.
    lists = job.run.read_as_of("vocabulary", "candidate_lists")
    lists = lists.select("user", F.explode("candidates").alias("item"))
    numbered = lists.join(item_ids, "item").join(
        job.read("user_ids").select("user", "user_id"), "user"
    )
    return numbered.groupBy("user_id").agg(F.collect_list("item_id").alias("candidates"))


def _categories(job: Job) -> ItemCategories | None:
    """Return the categories of items, where any are known."""
    if not job.has("items"):
        return None
    known = job.read("items").where(F.size("categories") > 0)
    if known.isEmpty():
        return None
    numbered = known.join(job.read("item_ids").select("item", "item_id"), "item")
    each = numbered.select("item_id", F.explode("categories").alias("category"))
    return write_categories(each, join(job.work_folder, "categories"), job.num_items())


def rank_stage(model: PipelineModel) -> Stage:
    """Return the stage that ranks held-out events by a model, and measures it."""
    reads = ("interactions", "catalogue", "candidate_lists", "items", "user_ids", "item_ids")
    return Stage(
        "rank",
        "Rank held-out events by a model and measure it (mode backtest).",
        reads=(*reads, part("recommendations", model.name), *model.tables),
        writes=tuple(part(table, model.name) for table in ("ranks", "judgements", "metrics")),
        settings=(
            "mode",
            "split.recommendable",
            "events.types",
            "slim.values",
            "recommend",
            *RANK_SETTINGS,
            "evaluate.bootstrap",
        ),
        work=run_rank,
        model=model.name,
    )
