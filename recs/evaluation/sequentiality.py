"""How sequential a log is: frequent item sequences that vanish when histories are shuffled.

A rule is two (or three) items in a row in users' histories that is frequent: it occurs at least
``min_count`` times over all users, and its last item follows what is before it in at least a share
``min_confidence`` of the cases, count(a, b) / count(a) or count(a, b, c) / count(a, b). Shuffling
every history keeps what users like and how popular items are, and destroys the order. Where most
rules vanish, order carries information that a sequential model can learn; where most stay, the
rules were only popular items side by side, and the log tells little about such models.

Klenitskiy, Volodkevich, Pembek and Vasilev 2024, "Does It Look Sequential? An Analysis of Datasets
for Evaluation of Sequential Recommendations", RecSys. The paper reports the change of the number of
rules, shuffled / original − 1, with counts from 5 and confidence from 0.1. ``lost`` is stricter: it
counts the rules of the log that are not among the shuffled log's, whatever new ones chance brings.
The parts of the paper that need a model are in :mod:`recs.evaluation.shuffling`.

Cost for E events and S shuffles: (S + 1)·E rows are sorted by user, and as many counted by their
three items; both shuffle and spill as any window and grouping, a user of millions of events too.
What grows no further than rules and items is joined, and 2·(S + 1) rows reach the driver.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

#: Number of the log itself among the shuffled ones.
_LOG = -1
#: Item after the last of a history.
_NONE = -1
_RULE = ("shuffle", "first", "second")


@dataclass(frozen=True)
class Loss:
    """What one shuffle did to the rules of one length.

    Attributes
    ----------
    items
        Length of the rules: 2 or 3 items in a row.
    shuffle
        0, 1, …
    rules, shuffled_rules
        Rules of the log, and of the shuffled log.
    lost
        Rules of the log that the shuffled log lacks.
    """

    items: int
    shuffle: int
    rules: int
    shuffled_rules: int
    lost: int


def losses(
    interactions: DataFrame, *, min_count: int, min_confidence: float, shuffles: int, seed: int
) -> list[Loss]:
    """Return what each shuffle did to the rules of 2 and of 3 items.

    Parameters
    ----------
    interactions
        user_id, item_id and sequence int (place in the user's order); each event a row.
    min_count
        Times that a rule occurs at the least.
    min_confidence
        Share of the occurrences of its first item (two items) that the last one follows.
    shuffles
        Seeded shuffles.
    seed
        Another seed gives other shuffles; partitions and the order of rows change nothing.
    """
    events = interactions.select("user_id", "item_id", "sequence")
    rules = _rules(_counts(events, shuffles, seed), events, min_count, min_confidence)
    same = Window.partitionBy("items", "first", "second", "third")
    marked = rules.withColumn("of_log", F.max(F.col("shuffle") == _LOG).over(same))
    found = marked.groupBy("items", "shuffle").agg(
        F.count("*").alias("rules"), F.count_if("of_log").alias("kept")
    )
    counts = {(row["items"], row["shuffle"]): row for row in found.collect()}

    def count(items: int, shuffle: int, what: str) -> int:
        return counts[items, shuffle][what] if (items, shuffle) in counts else 0

    return [
        Loss(
            items,
            shuffle,
            rules=count(items, _LOG, "rules"),
            shuffled_rules=count(items, shuffle, "rules"),
            lost=count(items, _LOG, "rules") - count(items, shuffle, "kept"),
        )
        for items in (2, 3)
        for shuffle in range(shuffles)
    ]


def _counts(events: DataFrame, shuffles: int, seed: int) -> DataFrame:
    """Count what follows what, in the log and the shuffled ones.

    Returns
    -------
    DataFrame
        shuffle, first, second, third (``_NONE`` at the end of a history) int, count bigint.
    """
    numbers = F.array(*(F.lit(number) for number in (_LOG, *range(shuffles))))
    place = F.xxhash64(F.lit(seed).cast("bigint"), "shuffle", "user_id", "sequence")
    copies = events.withColumn("shuffle", F.explode(numbers)).select(
        "shuffle",
        "item_id",
        "sequence",
        # One number that tells histories apart, so that sorting compares it and little else.
        (F.col("user_id").cast("bigint") * (shuffles + 1) + F.col("shuffle")).alias("history"),
        F.when(F.col("shuffle") == _LOG, F.col("sequence")).otherwise(place).alias("place"),
    )
    order = Window.partitionBy("history").orderBy("place", "sequence")
    following = copies.select(
        "shuffle",
        F.col("item_id").alias("first"),
        F.lead("item_id", 1, _NONE).over(order).alias("second"),
        F.lead("item_id", 2, _NONE).over(order).alias("third"),
    )
    in_rows = following.where(F.col("second") != _NONE)
    return in_rows.groupBy(*_RULE, "third").count()


def _rules(
    counts: DataFrame, events: DataFrame, min_count: int, min_confidence: float
) -> DataFrame:
    """Return the rules: items int (2 or 3), shuffle, first, second, third (null for 2) int."""
    # As one condition on the count, which is not pushed below the counting: then both it and the
    # pairs read what was counted once.
    full = F.when(F.col("third") != _NONE, F.col("count"))
    threes = counts.where(full >= min_count)
    pairs = counts.groupBy(*_RULE).agg(F.sum("count").alias("pairs"))
    # A pair occurs as often as any three that begin with it: the frequent ones are all there.
    pairs = pairs.where(F.col("pairs") >= min_count)
    occurrences = events.groupBy(F.col("item_id").alias("first")).agg(F.count("*").alias("before"))
    two = pairs.join(occurrences, "first").where(F.col("pairs") >= F.col("before") * min_confidence)
    three = threes.join(pairs, list(_RULE)).where(F.col("count") >= F.col("pairs") * min_confidence)
    return two.select(
        F.lit(2).alias("items"), *_RULE, F.lit(None).cast("int").alias("third")
    ).union(three.select(F.lit(3).alias("items"), *_RULE, "third"))
