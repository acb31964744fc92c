"""Held-out targets ranked by every model, and the metrics of ranks, judgements and lists."""

from __future__ import annotations

import logging
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.inputs import bounded_batches, open_catalogue, read_histories
from pipelines.job import Job, Stage
from pipelines.models import MODEL_TABLES, MODELS
from pipelines.recommend import require_lists
from recs.config import NETWORKS, Config, ConfigError, Gate
from recs.data.histories import with_candidates
from recs.errors import UserError
from recs.evaluation.lists import ItemCategories, evaluate_lists, write_categories
from recs.evaluation.ranks import shortages, sum_ranks
from recs.evaluation.relevance import RELEVANCE, judge, relevance_metrics
from recs.lake import LakeError
from recs.ranking.catalogue import ItemCatalogue
from recs.ranking.jobs import rank
from recs.ranking.protocols import RankingProtocol
from recs.ranking.scoring import Recommender
from recs.schema import METRICS_OF_LISTS
from recs.storage import join

log = logging.getLogger("recs")


class GateFailed(UserError):
    """A metric lies below what the configuration asks for."""

    exit_code = 3


def run_evaluate(job: Job) -> None:
    """Rank and judge what was held out, then derive every metric from that and the lists."""
    settings = job.config.evaluate
    require_targets(job)
    versions = {name: MODELS[name].version(job) for name in job.config.models}
    require_lists(job, versions)
    _warn_of_short_lists(job)
    version = F.create_map(*[F.lit(part) for pair in versions.items() for part in pair])
    version = version[F.col("model")]
    catalogue = open_catalogue(job)
    ranks, judgements = _measured_users(job, catalogue, version)
    with bounded_batches(job.spark):
        job.write("ranks", reduce(DataFrame.unionByName, ranks))
    _warn_of_shortages(job)
    totals = sum_ranks(
        job.read("ranks"),
        settings.ks,
        ties=settings.ties,
        replicates=settings.bootstrap,
        seed=job.config.seed,
    )
    metrics = totals.metrics(job.spark)
    # The fallback's lists are not the model's: of those users accuracy counts nothing either.
    lists = job.read("recommendations").where(~F.col("fallback"))
    metrics = metrics.unionByName(
        evaluate_lists(
            lists.where(F.col("model").isin(*job.config.models)),
            catalogue,
            _categories(job),
            ks=settings.ks,
            split=settings.split,
            replicates=settings.bootstrap,
            seed=job.config.seed,
        )
    )
    if judgements:
        with bounded_batches(job.spark):
            job.write("judgements", reduce(DataFrame.unionByName, judgements))
        found = relevance_metrics(
            job.read("judgements"),
            settings.split,
            logits=[name for name in job.config.models if name in NETWORKS],
            replicates=settings.bootstrap,
            seed=job.config.seed,
        )
        metrics = metrics.unionByName(found)
    else:
        job.clear("judgements")
    job.write("metrics", metrics.withColumn("model_version", version))
    if settings.baseline in job.config.models:
        job.write("metric_differences", totals.differences(job.spark, settings.baseline))
    else:
        job.clear("metric_differences")


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
    ranks = job.read("ranks").where(F.col("model") == job.config.models[0])
    for short in shortages(ranks, {name: num for name, num in sampled.items() if num}):
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


def _measured_users(
    job: Job, catalogue: ItemCatalogue, version: Column
) -> tuple[list[DataFrame], list[DataFrame]]:
    """Return ranks under every protocol, and judgements where they are asked for.

    Models that read the same of a history share a pass.
    """
    settings, seed = job.config.evaluate, job.config.seed
    protocols = [RankingProtocol(name, seed) for name in settings.protocols if name != RELEVANCE]
    candidate_lists = _candidate_lists(job)
    by_values: dict[str, list[str]] = {}
    for name in job.config.models:
        by_values.setdefault(MODELS[name].values(job), []).append(name)
    recommenders: dict[str, Recommender] = {
        name: MODELS[name].open(job) for name in job.config.models
    }

    def of_model(found: DataFrame) -> DataFrame:
        return found.withColumns({"model_version": version, "split": F.lit(settings.split)})

    ranks, judgements = [], []
    for values, names in by_values.items():
        users = read_histories(job, values, held_out=settings.split)
        if candidate_lists is not None:
            users = with_candidates(users, candidate_lists)
        users = job.persist(users)
        models = [recommenders[name] for name in names]
        ranks.append(of_model(rank(users, models, protocols, catalogue=catalogue)))
        if RELEVANCE in settings.protocols:
            judgements.append(of_model(judge(users, models, catalogue, seed)))
    return ranks, judgements


def _candidate_lists(job: Job) -> DataFrame | None:
    if not job.run.has("candidate_lists"):
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
    if not job.run.has("items"):
        return None
    known = job.read("items").where(F.size("categories") > 0)
    if known.isEmpty():
        return None
    numbered = known.join(job.read("item_ids").select("item", "item_id"), "item")
    each = numbered.select("item_id", F.explode("categories").alias("category"))
    return write_categories(each, join(job.work_folder, "categories"), job.num_items())


def require_measured(config: Config) -> None:
    """Refuse gates on what an evaluation by these settings does not measure.

    Raises
    ------
    ConfigError
        With the gate and the setting.
    """
    settings = config.evaluate
    for gate in settings.gates:
        asked = [
            ("models", gate.model, gate.model in config.models),
            ("evaluate.ks", gate.k, gate.k is None or gate.k in settings.ks),
        ]
        if gate.metric not in METRICS_OF_LISTS:  # which are measured under any protocol
            asked.append(("evaluate.protocols", gate.protocol, gate.protocol in settings.protocols))
        for key, value, measured in asked:
            if not measured:
                raise ConfigError(
                    f"evaluate.gates: {gate.label} is not measured: add {value} to {key}, or leave "
                    "out the gate"
                )


def check_gates(config: Config, metrics: list[dict[str, object]]) -> None:
    """Hold the metrics against the gates of the configuration.

    Raises
    ------
    GateFailed
        Naming each metric that lies below its gate, or is not measured.
    """
    failed = []
    for gate in config.evaluate.gates:
        value = _measured(gate, metrics)
        if value is None:
            failed.append(f"{gate.label} was not measured")
        elif not value >= gate.at_least:  # no number passes none
            failed.append(f"{gate.label} is {value:.4f}, below {gate.at_least:.4f}")
    if failed:
        raise GateFailed("; ".join(failed))


def _measured(gate: Gate, metrics: list[dict[str, object]]) -> float | None:
    for row in metrics:
        if all(row[key] == getattr(gate, key) for key in ("model", "protocol", "metric", "k")):
            value = row["value"]
            return None if value is None else float(value)  # type: ignore[arg-type]
    return None


EVALUATE = Stage(
    "evaluate",
    "Rank held-out events and measure (mode backtest).",
    reads=(
        "interactions",
        "catalogue",
        "recommendations",
        "candidate_lists",
        "items",
        "user_ids",
        "item_ids",
        *MODEL_TABLES,
    ),
    writes=("ranks", "judgements", "metrics", "metric_differences"),
    settings=(
        "mode",
        "seed",
        "models",
        "split.recommendable",
        "events.types",
        "slim.values",
        "evaluate",
        "recommend",
    ),
    work=run_evaluate,
)
