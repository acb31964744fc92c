"""How much models need the order of histories: their quality and lists when it is destroyed.

The measures of Klenitskiy et al. 2024 (:mod:`recs.evaluation.sequentiality`) that ask a model: it
is trained on the log as it is, and reads shuffled histories. A model that answers as before has
learned what users like, not in what order they come by it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recs.schema import SEQUENCE_ARRAYS


@dataclass(frozen=True)
class Change:
    """What one shuffle did to a model.

    Attributes
    ----------
    model
        Name of the model.
    shuffle
        0, 1, …
    k
        Length of the lists.
    ndcg, hr
        At k under full ranking, of histories as they are.
    shuffled_ndcg, shuffled_hr
        Of shuffled ones.
    jaccard
        Mean over users of |A ∩ B| / |A ∪ B|, A and B the lists of both.
    users
        Users with held-out targets.
    """

    model: str
    shuffle: int
    k: int
    ndcg: float
    shuffled_ndcg: float
    hr: float
    shuffled_hr: float
    jaccard: float
    users: int


def shuffled(histories: DataFrame, shuffle: int, seed: int) -> DataFrame:
    """Put the events of each history in an order drawn for the user.

    Parameters
    ----------
    histories
        user_id, and items, event_types, gaps as in table ``sequences``.
    shuffle, seed
        Other numbers, other orders.
    """
    events = F.transform(
        F.arrays_zip(*SEQUENCE_ARRAYS),
        lambda event, place: F.struct(
            F.xxhash64(F.lit(seed), F.lit(shuffle), F.col("user_id"), place).alias("key"),
            place.alias("place"),
            *(event[name].alias(name) for name in SEQUENCE_ARRAYS),
        ),
    )
    sorted_events = histories.withColumn("_events", F.array_sort(events))
    return sorted_events.withColumns(
        {name: F.col(f"_events.{name}") for name in SEQUENCE_ARRAYS}
    ).drop("_events")


def jaccard(lists: DataFrame, others: DataFrame) -> float:
    """Return the mean Jaccard index of users' lists, both of user_id and item_id, a row an item."""
    first, second = (
        rows.groupBy("user_id").agg(F.collect_set("item_id").alias(name))
        for rows, name in ((lists, "first"), (others, "second"))
    )
    both = first.join(second, "user_id", "full")
    sets = [F.coalesce(name, F.array().cast("array<int>")) for name in ("first", "second")]
    index = F.size(F.array_intersect(*sets)) / F.size(F.array_union(*sets))
    return float(both.agg(F.avg(index)).collect()[0][0] or 0.0)
