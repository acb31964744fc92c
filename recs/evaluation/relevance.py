"""Relevance prediction: does this user like this item? Accuracy and AUC over held-out events."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.arrays.lists import Lists, offsets_of, read_column, read_lists, to_arrow
from recs.evaluation.bootstrap import SUMS, Totals, estimate, replicate_means, total
from recs.evaluation.grouping import gather_users
from recs.evaluation.ranks import METRICS
from recs.ranking.catalogue import ItemCatalogue
from recs.ranking.jobs import score
from recs.ranking.scoring import Recommender
from recs.sampling import Sampler
from recs.sampling.hashing import RELEVANCE_PAIRS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: Name of the protocol in ``metrics``.
RELEVANCE = "relevance"
#: One pair in the sums over pairs: users of up to 2^19 are below what these sums hold exactly.
_PAIR = 2.0**-10


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

    def add(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        sampler = Sampler.uniform(catalogue.recommendable, purpose=RELEVANCE_PAIRS)
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


def relevance_metrics(
    judgements: DataFrame,
    split: str,
    *,
    logits: Collection[str],
    replicates: int = 500,
    seed: int = 0,
) -> DataFrame:
    """Return accuracy and AUC of each model.

    ``accuracy`` is the share of pairs, of all users together, whose score has the sign of its
    label: a score above 0 says that the item is liked, which is what the scores of networks trained
    with the loss ``relevance`` or ``bce`` say. ``auc`` is the mean over users of the probability
    that a liked item of the user scores above another one, equal scores half; users who have liked
    items alone, or none, are left out.

    Parameters
    ----------
    judgements
        Of :func:`judge`.
    split
        Written beside the metrics.
    logits
        Models whose scores are logits; the others have no ``accuracy``.
    replicates, seed
        Of the bootstrap.

    Returns
    -------
    DataFrame
        :data:`~recs.evaluation.ranks.METRICS`, a row a model and metric; k and ties null.
    """
    from pyspark.sql import functions as F

    def measure(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = Totals(replicates, seed)
        for batch in batches:
            scores, liked = batch.column("score"), batch.column("liked")
            offsets = offsets_of(scores.value_lengths().to_numpy())
            values = _judged(offsets, scores.flatten().to_numpy(), liked.flatten().to_numpy())
            users = read_column(batch, "user_id")
            totals.add(users, read_column(batch, "group"), np.zeros(users.size, np.int32), values)
        yield from totals.rows()

    pairs = judgements.select("model", "user_id", "score", F.col("liked").cast("int"))
    users, groups = gather_users(pairs, ["model"], {"score": "float", "liked": "int"})
    rows: list[tuple] = []
    for (group, _), sums in sorted(total(users.mapInArrow(measure, SUMS), replicates).items()):
        [model] = groups[group]
        everyone, num_pairs, right, mixed, area = sums
        found = {}
        if model in logits:
            found["accuracy"] = estimate(replicate_means(right, num_pairs), everyone)
        if mixed[0]:
            found["auc"] = estimate(replicate_means(area, mixed), mixed)
        for metric, estimated in found.items():
            rows.append((model, RELEVANCE, split, "all", metric, None, None, *estimated))
    return judgements.sparkSession.createDataFrame(rows, METRICS)


@compiled_once()
@njit(cache=True, nogil=True)
def _judged(offsets: np.ndarray, scores: np.ndarray, liked: np.ndarray) -> np.ndarray:
    """Return float64[B, 5] of users' pairs at ``offsets``: 1, the number of pairs and of those
    whose score has the sign of the label, 1 if some are liked and some not, and then the AUC."""
    out = np.zeros((offsets.size - 1, 5))
    for u in range(offsets.size - 1):
        start, stop = offsets[u], offsets[u + 1]
        out[u, 0] = 1.0
        out[u, 1] = (stop - start) * _PAIR
        for p in range(start, stop):
            out[u, 2] += ((scores[p] > 0) == (liked[p] == 1)) * _PAIR
        order = start + np.argsort(scores[start:stop])
        num_liked, num_others, in_order, first = 0, 0, 0.0, 0
        while first < order.size:
            last, run_liked = first, 0  # a run of equal scores
            while last < order.size and scores[order[last]] == scores[order[first]]:
                run_liked += liked[order[last]]
                last += 1
            run_others = last - first - run_liked
            in_order += run_liked * (num_others + 0.5 * run_others)
            num_liked += run_liked
            num_others += run_others
            first = last
        if num_liked > 0 and num_others > 0:
            out[u, 3] = 1.0
            out[u, 4] = in_order / (num_liked * num_others)
    return out
