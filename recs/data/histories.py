"""Interactions in the forms that models read: unique pairs to fit on, histories to score from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F


def positives(
    interactions: DataFrame, fit_splits: tuple[str, ...], values: Literal["binary", "weight"]
) -> DataFrame:
    """Return (user_id, item_id) of the positive interactions fitted on, a row an interaction.

    With ``weight`` their ``value`` is beside them, where it is above 0.
    """
    fitted = _fitted(interactions, fit_splits)
    if values == "binary":
        return fitted.select("user_id", "item_id")
    weighted = fitted.select("user_id", "item_id", F.col("weight").alias("value"))
    return weighted.where("value > 0")


def _fitted(interactions: DataFrame, fit_splits: tuple[str, ...]) -> DataFrame:
    return interactions.where(F.col("positive") & F.col("split").isin(*fit_splits))


def pairs(
    interactions: DataFrame, fit_splits: tuple[str, ...], values: Literal["binary", "weight"]
) -> DataFrame:
    """Return unique (user_id, item_id, value float) of the positive interactions fitted on.

    ``value`` is 1, or the pair's weights summed in the order of events.
    """
    return _pairs(interactions, fit_splits, values).where("value > 0")


def _pairs(
    interactions: DataFrame, fit_splits: tuple[str, ...], values: Literal["binary", "weight"]
) -> DataFrame:
    """Return what :func:`pairs` does, and pairs whose weights are not above 0 together."""
    if values == "binary":
        unique = positives(interactions, fit_splits, values).distinct()
        return unique.withColumn("value", F.lit(1.0).cast("float"))
    ordered = F.array_sort(F.collect_list(F.struct("sequence", "weight")))
    total = F.aggregate(ordered, F.lit(0.0), lambda total, event: total + event["weight"])
    fitted = _fitted(interactions, fit_splits)
    return fitted.groupBy("user_id", "item_id").agg(total.cast("float").alias("value"))


def histories(
    interactions: DataFrame,
    fit_splits: tuple[str, ...],
    values: Literal["binary", "weight"],
    *,
    exclude_seen: bool,
    shown: Sequence[str] = (),
) -> DataFrame:
    """Return what models read of each user.

    Events of the types ``shown`` make no item seen or disliked.

    Returns
    -------
    DataFrame
        ``user_id``; ``history`` array<int>, the items of :func:`pairs` ascending; ``values``
        array<float> beside it; ``history_length`` int, the positive items fitted on, whatever their
        values; ``seen`` array<int> ascending, the items never to be recommended (disliked ones
        always; all that were interacted with if ``exclude_seen``).
    """
    pair = F.when(F.col("value") > 0, F.struct("item_id", "value"))
    liked = (
        _pairs(interactions, fit_splits, values)
        .groupBy("user_id")
        .agg(
            F.array_sort(F.collect_list(pair)).alias("_pairs"),
            F.count("*").cast("int").alias("history_length"),
        )
    )
    known = interactions.where(F.col("split").isin(*fit_splits) & ~F.col("event_type").isin(*shown))
    unwanted = known if exclude_seen else known.where(~F.col("positive"))
    seen = unwanted.groupBy("user_id").agg(F.array_sort(F.collect_set("item_id")).alias("seen"))
    users = interactions.select("user_id").distinct()
    joined = users.join(liked, "user_id", "left").join(seen, "user_id", "left")
    return joined.select(
        "user_id",
        F.coalesce(F.col("_pairs.item_id"), F.array().cast("array<int>")).alias("history"),
        F.coalesce(F.col("_pairs.value"), F.array().cast("array<float>")).alias("values"),
        F.coalesce("history_length", F.lit(0)).alias("history_length"),
        F.coalesce("seen", F.array().cast("array<int>")).alias("seen"),
    )


def with_targets(
    histories: DataFrame,
    interactions: DataFrame,
    split: str,
    candidate_lists: DataFrame | None = None,
    *,
    shown: Sequence[str] = (),
) -> DataFrame:
    """Keep the users of whom something is held out, and add what evaluation needs.

    Parameters
    ----------
    histories
        Of :func:`histories`.
    interactions
        The table.
    split
        ``validation`` or ``test``.
    candidate_lists
        user_id, item_id (the target), candidates array<int>, where the data set gives lists.
    shown
        Event types that say nothing of what is liked or disliked: their items may be drawn.

    Returns
    -------
    DataFrame
        ``histories`` with ``targets`` array<int> ascending (positive items of the split),
        ``disliked`` array<int> ascending (its other items), ``positives`` array<int> ascending
        (all items that the user has events of in any split: never drawn as negatives) and
        ``candidates`` array<int> (empty where none are given).
    """
    interactions = interactions.where(~F.col("event_type").isin(*shown))
    held_out = interactions.where(F.col("split") == split)
    liked, disliked = (
        F.collect_set(F.when(F.col("positive") == wanted, F.col("item_id")))
        for wanted in (True, False)
    )
    targets = held_out.groupBy("user_id").agg(
        F.array_sort(liked).alias("targets"),
        F.array_sort(F.array_except(disliked, liked)).alias("disliked"),
    )
    targets = targets.where((F.size("targets") > 0) | (F.size("disliked") > 0))
    known = interactions.groupBy("user_id").agg(
        F.array_sort(F.collect_set("item_id")).alias("positives")
    )
    joined = histories.join(targets, "user_id").join(known, "user_id")
    none = F.array().cast("array<int>")
    if candidate_lists is None:
        return joined.withColumn("candidates", none)
    lists = candidate_lists.groupBy("user_id").agg(
        F.array_sort(F.array_distinct(F.flatten(F.collect_list("candidates")))).alias("candidates")
    )
    joined = joined.join(lists, "user_id", "left")
    return joined.withColumn("candidates", F.coalesce("candidates", none))
