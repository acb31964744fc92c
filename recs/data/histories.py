"""Interactions in the forms that models read: events to fit on, histories to score from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F


def positives(
    interactions: DataFrame, fit_splits: tuple[str, ...], values: Literal["binary", "weight"]
) -> DataFrame:
    """Return (user_id, item_id) of the positive interactions fitted on, a row an interaction.

    With ``weight`` their ``value`` float is beside them, where it is above 0.
    """
    fitted = interactions.where(F.col("positive") & F.col("split").isin(*fit_splits))
    if values == "binary":
        return fitted.select("user_id", "item_id")
    value = F.col("weight").cast("float").alias("value")  # a tiny one becomes 0 here, not later
    weighted = fitted.select("user_id", "item_id", value)
    return weighted.where("value > 0")


def histories(
    interactions: DataFrame,
    fit_splits: tuple[str, ...],
    values: Literal["binary", "weight"],
    *,
    exclude_seen: bool,
    shown: Sequence[str] = (),
    held_out: str | None = None,
) -> DataFrame:
    """Return what models read of each user, and what of the user is held out.

    Events of the types ``shown`` are impressions: they make no item seen, had or disliked.

    Parameters
    ----------
    interactions
        The table.
    fit_splits
        Splits that models are fitted on.
    values
        ``binary`` or ``weight``: what stands beside the items of a history.
    exclude_seen
        Whether lists hold nothing that the user has had.
    shown
        Event types that are impressions.
    held_out
        ``validation`` or ``test``; keeps the users of whom something is held out.

    Returns
    -------
    DataFrame
        All arrays are ascending and without repeats.

        - ``user_id`` int;
        - ``history`` array<int>, the positive items fitted on, and ``values`` array<float> beside
          it: 1, or the item's weights summed in the order of events, where they are above 0;
        - ``history_length`` int, the positive items fitted on, whatever their values;
        - ``seen`` array<int>, the items never to be recommended: of the splits fitted on the
          disliked ones, and all others too if ``exclude_seen``.

        With ``held_out`` also

        - ``targets`` array<int>, the positive items of the split, and ``repeats`` array<boolean>
          beside it: whether the user has had the item in the splits fitted on;
        - ``disliked`` array<int>, the other items of the split;
        - ``interacted`` array<int>, all items that the user has events of in any split, disliked
          ones too: never drawn as negatives.
    """
    counted = ~F.col("event_type").isin(*shown) if shown else F.lit(True)
    had = F.col("split").isin(*fit_splits) & counted
    flags = {
        "_wanted": F.col("positive") & F.col("split").isin(*fit_splits),
        "_had": had,
        "_seen": had if exclude_seen else had & ~F.col("positive"),
    }
    if held_out:
        of_split = (F.col("split") == held_out) & counted
        flags |= {
            "_liked": of_split & F.col("positive"),
            "_disliked": of_split & ~F.col("positive"),
            "_interacted": counted,
        }
    found = {
        "history": _items("_wanted"),
        "values": F.array_repeat(F.lit(1.0).cast("float"), F.size(_items("_wanted"))),
        "history_length": F.size(_items("_wanted")),
        "seen": _items("_seen"),
    }
    if values == "weight":
        rows = _weighed(interactions, flags)
        pair = F.when(F.col("_wanted") & (F.col("value") > 0), F.struct("item_id", "value"))
        read = F.array_sort(F.collect_list(pair))
        found |= {"history": read["item_id"], "values": read["value"]}
    else:
        rows = interactions.withColumns(flags)
    if not held_out:
        return rows.groupBy("user_id").agg(*_named(found))
    found |= {
        "targets": _items("_liked"),
        "repeats": F.collect_set(_when("_had")),
        "disliked": F.array_except(_items("_disliked"), _items("_liked")),
        "interacted": _items("_interacted"),
    }
    users = rows.groupBy("user_id").agg(*_named(found))
    users = users.where((F.size("targets") > 0) | (F.size("disliked") > 0))
    repeats = F.transform("targets", lambda item: F.array_contains("repeats", item))
    return users.withColumn("repeats", repeats)


def _named(columns: dict[str, Column]) -> list[Column]:
    return [column.alias(name) for name, column in columns.items()]


def _when(flag: str) -> Column:
    return F.when(F.col(flag), F.col("item_id"))


def _items(flag: str) -> Column:
    """Return the items of rows with a flag, ascending."""
    return F.array_sort(F.collect_set(_when(flag)))


def _weighed(interactions: DataFrame, flags: dict[str, Column]) -> DataFrame:
    """Return a row a user and item: whether an event has each flag, and the wanted ones' weights.

    Summed in the order of events, so that the rounding is the same under any partitioning.
    """
    wanted = F.when(flags["_wanted"], F.struct("sequence", "weight"))
    ordered = F.array_sort(F.collect_list(wanted))
    total = F.aggregate(ordered, F.lit(0.0), lambda total, event: total + event["weight"])
    # By user, as they are brought together later: rows are exchanged once.
    by_user = interactions.repartition("user_id")
    return by_user.groupBy("user_id", "item_id").agg(
        total.cast("float").alias("value"),
        *(F.max(flag).alias(name) for name, flag in flags.items()),
    )


def with_candidates(histories: DataFrame, candidate_lists: DataFrame) -> DataFrame:
    """Add the candidates that the data set gives: array<int> ascending, empty without any.

    Parameters
    ----------
    candidate_lists
        user_id, candidates array<int>; perhaps several rows a user.
    """
    lists = candidate_lists.groupBy("user_id").agg(
        F.array_sort(F.array_distinct(F.flatten(F.collect_list("candidates")))).alias("candidates")
    )
    none = F.array().cast("array<int>")
    joined = histories.join(lists, "user_id", "left")
    return joined.withColumn("candidates", F.coalesce("candidates", none))
