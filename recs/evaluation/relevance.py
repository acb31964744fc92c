"""Relevance prediction: does this user like this item? Accuracy and AUC over held-out events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from recs.arrays.lists import Lists, offsets_of, read_column, read_lists, to_arrow
from recs.evaluation.ranks import METRICS
from recs.ranking.catalogue import ItemCatalogue
from recs.ranking.jobs import score
from recs.ranking.protocols import RankingProtocol, sampler_of
from recs.ranking.scoring import Recommender

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: Name of the protocol in ``metrics``.
RELEVANCE = "relevance"


def judge(
    users: DataFrame, models: Sequence[Recommender], catalogue: ItemCatalogue, seed: int
) -> DataFrame:
    """Score what users held out, liked and disliked, and as many items drawn as they liked.

    Parameters
    ----------
    users
        user_id, history, values, targets, disliked, interacted of
        :func:`recs.data.histories.histories`. A user's own items are never drawn; drawing depends
        on the seed and the user only.
    models
        What scores.
    catalogue
        Of the items that may be drawn, uniformly.

    Returns
    -------
    DataFrame
        model string, user_id int, item_id int, liked boolean, score float; drawn items are not
        liked.
    """
    from pyspark.sql import functions as F

    asked = _with_candidates(users, catalogue, seed)
    liked = users.select(
        "user_id", F.explode("targets").alias("item_id"), F.lit(True).alias("liked")
    )
    scored = []
    for model in models:
        pairs = F.explode(F.arrays_zip("candidates", "scores")).alias("pair")
        rows = score(asked, model).select("user_id", pairs)
        scored.append(
            rows.select(
                F.lit(model.name).alias("model"),
                "user_id",
                F.col("pair.candidates").alias("item_id"),
                F.col("pair.scores").alias("score"),
            )
        )
    together = reduce(lambda left, right: left.unionByName(right), scored)
    joined = together.join(liked, ["user_id", "item_id"], "left")
    known = F.coalesce("liked", F.lit(False)).alias("liked")
    return joined.select("model", "user_id", "item_id", known, "score")


def _with_candidates(users: DataFrame, catalogue: ItemCatalogue, seed: int) -> DataFrame:
    """Add ``candidates``: a user's targets, disliked items and, as many as targets, drawn ones."""
    from pyspark.sql import types as T

    protocol = RankingProtocol("uniform1", seed=seed)

    def add(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        sampler = sampler_of(protocol, catalogue)
        for batch in batches:
            user_ids, owned = read_column(batch, "user_id"), read_lists(batch, "interacted")
            targets, disliked = read_lists(batch, "targets"), read_lists(batch, "disliked")
            parts = [targets, disliked]
            sizes = np.diff(targets.offsets)
            for size in np.unique(sizes[sizes > 0]).tolist():
                asking = sizes == size
                barred = owned.select(asking)
                exclude = barred.offsets, barred.items
                offsets, items = sampler.sample(user_ids[asking], exclude, size, seed=seed)
                lengths = np.zeros_like(sizes)
                lengths[asking] = np.diff(offsets)
                parts.append(Lists(offsets_of(lengths), items))
            joined = _end_to_end(parts)
            arrays = [*batch.columns, to_arrow(joined.offsets, pa.array(joined.items))]
            yield pa.RecordBatch.from_arrays(arrays, [*batch.schema.names, "candidates"])

    read = users.drop("candidates")
    field = T.StructField("candidates", T.ArrayType(T.IntegerType()))
    return read.mapInArrow(add, T.StructType([*read.schema.fields, field]))


def _end_to_end(parts: Sequence[Lists]) -> Lists:
    """Return each user's entries of all the parts, one part after the other."""
    offsets = offsets_of(np.sum([np.diff(part.offsets) for part in parts], axis=0))
    items = np.empty(offsets[-1], np.int32)
    free = offsets[:-1].copy()
    for part in parts:
        lengths = np.diff(part.offsets)
        within = np.arange(part.items.size) - np.repeat(part.offsets[:-1], lengths)
        items[np.repeat(free, lengths) + within] = part.items
        free += lengths
    return Lists(offsets, items)


def relevance_metrics(judgements: DataFrame, split: str) -> DataFrame:
    """Return accuracy and AUC of each model.

    ``accuracy`` is the share of pairs whose score has the sign of its label: scores above 0 say
    that the item is liked, which holds of networks trained with the loss ``relevance`` or ``bce``.
    ``auc`` is the probability that a liked pair scores above one that is not, equal scores half.

    Parameters
    ----------
    judgements
        Of :func:`judge`.
    split
        Written beside the metrics.

    Returns
    -------
    DataFrame
        :data:`~recs.evaluation.ranks.METRICS`, a row a model and metric; k and bounds null. A
        model whose pairs are all liked or none has no ``auc``.
    """
    from pyspark.ml.evaluation import BinaryClassificationEvaluator
    from pyspark.sql import functions as F

    area = BinaryClassificationEvaluator(
        rawPredictionCol="score", labelCol="label", metricName="areaUnderROC", numBins=0
    )
    pairs = judgements.select(
        "model",
        "user_id",
        F.col("score").cast("double").alias("score"),
        F.col("liked").cast("double").alias("label"),
    )
    right = ((F.col("score") > 0) == (F.col("label") > 0)).cast("double")
    totals = pairs.groupBy("model").agg(
        F.avg(right).alias("accuracy"),
        F.avg("label").alias("share"),
        F.countDistinct("user_id").alias("users"),
    )
    rows = []
    for row in totals.orderBy("model").collect():
        values = {"accuracy": row["accuracy"]}
        if 0 < row["share"] < 1:
            values["auc"] = area.evaluate(pairs.where(F.col("model") == row["model"]))
        for metric, value in values.items():
            key = row["model"], RELEVANCE, split, "all", metric, None, None
            rows.append((*key, value, None, None, row["users"]))
    return judgements.sparkSession.createDataFrame(rows, METRICS)
