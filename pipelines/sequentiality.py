"""How much of a log is order: its item sequences, and what networks make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain, groupby
from operator import attrgetter
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from pipelines.inputs import bounded_batches, open_catalogue, read_histories
from pipelines.job import Job, Stage
from pipelines.networks import (
    embedded_version,
    embeddings,
    model_folder,
    networks_of,
    open_network,
)
from recs import readers
from recs.config import Config, ConfigError
from recs.evaluation.ranks import sum_ranks
from recs.evaluation.sequentiality import Loss, losses
from recs.evaluation.shuffling import Change, jaccard, shuffled
from recs.lake import Lake
from recs.ledger import Finished
from recs.ranking.catalogue import ItemCatalogue
from recs.ranking.jobs import rank, recommend
from recs.ranking.protocols import RankingProtocol
from recs.schema import part
from recs.storage import join
from recs.training import embed


def run_sequentiality(job: Job) -> None:
    """Count the frequent rules of the whole log (all splits) and of its shuffled histories."""
    settings = job.config.sequentiality
    found = losses(
        job.read("interactions"),
        min_count=settings.min_count,
        min_confidence=settings.min_confidence,
        shuffles=settings.shuffles,
        seed=job.config.seed,
    )
    job.write_rows("sequentiality", [asdict(loss) for loss in found])
    # Mode serve holds nothing out, by which networks could be measured.
    embedded = _embedded(job) if job.config.mode == "backtest" else {}
    if embedded:
        with bounded_batches(job.spark):
            changes = _changes(job, embedded)
        job.write_rows("model_sequentiality", [asdict(change) for change in changes])


def _embedded(job: Job) -> dict[str, str]:
    """Return the networks of the configuration that are embedded, and the run that trained each."""
    return {
        name: embedded_version(name, job)
        for name in networks_of(job.config.models)
        if job.has(part("user_embeddings", name))
    }


def _changes(job: Job, embedded: dict[str, str]) -> list[Change]:
    """Measure networks on histories as they are and shuffled."""
    job.run.require_one_generation("interactions", "sequences")
    catalogue = open_catalogue(job)
    histories = job.persist(embed.newest(job.read("sequences"), job.fit_splits))
    return [
        change
        for name, trained in sorted(embedded.items())
        for change in _changes_of(job, name, trained, histories, catalogue)
    ]


def _changes_of(
    job: Job, name: str, trained: str, histories: DataFrame, catalogue: ItemCatalogue
) -> list[Change]:
    settings, seed = job.config.sequentiality, job.config.seed
    model, folder = open_network(name, job), model_folder(job, name, trained)
    users = read_histories(job, name, held_out=job.config.evaluate.split)
    users = job.persist(users.where(F.size("targets") > 0))

    def measured(users: DataFrame) -> tuple[dict[str, Row], DataFrame]:
        ranks = rank(users, [model], [RankingProtocol("full")], catalogue=catalogue)
        # Read twice: for the groups there are, and by user.
        ranks = ranks.withColumn("split", F.lit(job.config.evaluate.split)).persist()
        totals = sum_ranks(ranks, [settings.k], ties="against", replicates=1, seed=seed)
        ranks.unpersist()
        wanted = (F.col("slice") == "all") & (F.col("k") == settings.k)
        rows = totals.metrics(job.spark).where(wanted).collect()
        lists = recommend(users, model, k=settings.k, catalogue=catalogue, why=0)
        return {row["metric"]: row for row in rows}, lists.select("user_id", "item_id")

    before, lists = measured(users)
    lists = job.persist(lists)
    changes = []
    for number in range(settings.shuffles):
        vectors = embed.user_embeddings(shuffled(histories, number, seed), folder)
        after, others = measured(
            users.drop("vector").join(vectors.select("user_id", "vector"), "user_id", "left")
        )
        changes.append(
            Change(
                model=name,
                shuffle=number,
                k=settings.k,
                ndcg=before["ndcg"]["value"],
                shuffled_ndcg=after["ndcg"]["value"],
                hr=before["hr"]["value"],
                shuffled_hr=after["hr"]["value"],
                jaccard=jaccard(lists, others),
                users=before["ndcg"]["users"],
            )
        )
    return changes


def read_changes(lake: Lake, done: Finished) -> list[dict[str, Any]]:
    """Return, for each network, the means over the shuffles of a run; none where none is trained.

    ``change`` is shuffled_ndcg / ndcg − 1.
    """
    if lake.key("model_sequentiality") not in done.outputs:
        return []
    measures = ("ndcg", "shuffled_ndcg", "hr", "shuffled_hr", "jaccard")
    rows = (
        readers.written(lake, done, "model_sequentiality")
        .groupBy("model", "k")
        .agg(
            *(F.round(F.avg(name), 4).alias(name) for name in measures),
            F.round(F.avg("shuffled_ndcg") / F.avg("ndcg") - 1, 4).alias("change"),
        )
    )
    return [row.asDict() for row in rows.orderBy("model").collect()]


def read_losses(lake: Lake, done: Finished) -> list[Loss]:
    """Return the losses that a run has counted, by items and shuffle."""
    rows = readers.written(lake, done, "sequentiality").drop("run_id")
    rows = rows.orderBy("items", "shuffle")
    return [Loss(**row.asDict()) for row in rows.collect()]


def summary(found: Sequence[Loss]) -> list[dict[str, Any]]:
    """Return a row for each length of rules: means over the shuffles, and shares of the rules.

    ``change`` is shuffled_rules / rules − 1, ``lost_share`` lost / rules; None without rules.
    """
    rows = []
    for items, of_length in groupby(found, attrgetter("items")):
        each = [asdict(loss) for loss in of_length]
        mean = {
            name: sum(loss[name] for loss in each) / len(each)
            for name in ("rules", "shuffled_rules", "lost")
        }
        rules = int(mean["rules"])
        rows.append(
            {
                "items": items,
                **mean,
                "rules": rules,
                "change": round(mean["shuffled_rules"] / rules - 1, 4) if rules else None,
                "lost_share": round(mean["lost"] / rules, 4) if rules else None,
            }
        )
    return rows


def draw(config: Config, found: Sequence[Loss]) -> str:
    """Write the plot under the lake's root and return its path.

    Raises
    ------
    ConfigError
        If matplotlib is missing.
    """
    from recs.report.plots import plot_sequentiality, save

    path = join(config.root, "_reports", f"sequentiality-{config.name}.png")
    try:
        save(plot_sequentiality(found, config.name), path)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the plot needs {error.name}: install recs with its extra 'report'"
        ) from error
    return path


def sequentiality_stage(models: Sequence[str]) -> Stage:
    """Return the stage that measures how much of a log, and of what networks make, is order."""
    reads = ("interactions", "sequences", "catalogue", "user_ids", "item_ids")
    return Stage(
        "sequentiality",
        "Count frequent item sequences, and those lost when histories are shuffled.",
        reads=(*reads, *chain.from_iterable(map(embeddings, networks_of(models)))),
        writes=("sequentiality", "model_sequentiality"),
        settings=(
            "mode",
            "seed",
            "models",
            "events.types",
            "split",
            "recommend.exclude_seen",
            "evaluate",
            "sequentiality",
        ),
        work=run_sequentiality,
    )
