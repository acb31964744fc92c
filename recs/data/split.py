"""Events in dense ids and order, each in its split."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from recs.config import Split
from recs.data.sources import moment_of
from recs.schema import EVENT_ORDER


def interactions(
    events: DataFrame,
    user_ids: DataFrame,
    item_ids: DataFrame,
    split: Split,
    *,
    hold_out: bool,
    files_give_validation: bool,
    seed: int,
) -> DataFrame:
    """Return table ``interactions`` but ``run_id``.

    In this order: users over the cap, repeats, k-core, order, split. Held-out *targets* are the
    positive interactions of a split; under ``leave_one_out`` and ``global_time`` negative ones that
    lie after a target are put in its split too, for they are its future.

    Parameters
    ----------
    events, user_ids, item_ids
        The tables.
    split
        How to split; see :class:`recs.config.Split`.
    hold_out
        False puts everything in ``train`` (mode ``serve``).
    files_give_validation
        Whether an event source is held out as validation (method ``files``).
    seed
        Of the random choices, which depend on it and on ids as delivered alone.
    """
    kept = events.join(user_ids.select("user", "user_id"), "user")
    kept = kept.join(item_ids.select("item", "item_id"), "item")
    kept = _cap(kept, split)
    kept = _merge_repeats(kept) if split.repeats == "merge" else kept
    kept = _k_core(kept, split.min_user_events, split.min_item_events)
    order = Window.partitionBy("user_id").orderBy(*EVENT_ORDER)
    kept = kept.withColumn("sequence", F.row_number().over(order) - 1)
    if hold_out:
        kept = _hold_out(kept, split, files_give_validation, seed)
    else:
        kept = kept.withColumn("split", F.lit("train"))
    return kept.select(
        "user_id", "item_id", "sequence", "timestamp", "event_type", "weight", "positive", "split"
    )


def is_per_user(split: Split) -> bool:
    """Tell whether new events change the interactions of their own users only, and drop none.

    A minimum of events an item lets users depend on each other; dropping those over a cap lets a
    user vanish, and so does a minimum of positive ones among the latest.
    """
    capped = split.max_user_events is not None
    drops = capped and (split.over_cap == "drop" or split.min_user_events > 1)
    return split.min_item_events == 1 and not drops


def _cap(events: DataFrame, split: Split) -> DataFrame:
    if split.max_user_events is None:
        return events
    if split.over_cap == "drop":
        counts = events.groupBy("user_id").agg(F.count("*").alias("_n"))
        over = counts.where(F.col("_n") > split.max_user_events).select("user_id")
        return events.join(over, "user_id", "left_anti")
    newest = [F.desc(column) for column in EVENT_ORDER]
    rank = F.row_number().over(Window.partitionBy("user_id").orderBy(*newest))
    return (
        events.withColumn("_rank", rank)
        .where(F.col("_rank") <= split.max_user_events)
        .drop("_rank")
    )


def _merge_repeats(events: DataFrame) -> DataFrame:
    """Keep the last of a user's events of an item and polarity, with the sum of their weights."""
    pair = Window.partitionBy("user_id", "item_id", "positive")
    last = F.row_number().over(pair.orderBy(*[F.desc(column) for column in EVENT_ORDER]))
    # Summed in event order, so that the rounding of the sum is the same under any partitioning.
    whole = (Window.unboundedPreceding, Window.unboundedFollowing)
    total = F.sum("weight").over(pair.orderBy(*EVENT_ORDER).rowsBetween(*whole))
    merged = events.withColumn("_last", last).withColumn("weight", total)
    return merged.where("_last = 1").drop("_last")


def _k_core(events: DataFrame, min_user: int, min_item: int) -> DataFrame:
    """Drop users and items with too few positive events until none is left to drop.

    A user's or item's other events go with it; where the minimum is 1, none goes. Each round
    costs a shuffle of the events; real logs need a handful.
    """
    if min_user == 1 and min_item == 1:
        return events
    pairs = events.where("positive").select("user_id", "item_id").persist()
    size = pairs.count()
    while True:
        users = pairs.groupBy("user_id").count().where(F.col("count") >= min_user).drop("count")
        items = pairs.groupBy("item_id").count().where(F.col("count") >= min_item).drop("count")
        fewer = pairs.join(users, "user_id", "left_semi").join(items, "item_id", "left_semi")
        fewer = fewer.select("user_id", "item_id").localCheckpoint()
        found = fewer.count()
        pairs.unpersist()
        pairs = fewer
        if found == size:
            break
        size = found
    for key, minimum in (("user_id", min_user), ("item_id", min_item)):
        if minimum > 1:
            events = events.join(pairs.select(key).distinct(), key, "left_semi")
    return events


def _hold_out(kept: DataFrame, split: Split, files_give_validation: bool, seed: int) -> DataFrame:
    if split.method == "leave_one_out":
        return _leave_one_out(kept)
    if split.method == "global_time":
        assert split.validation_from and split.test_from
        late = F.when(F.col("timestamp") >= moment_of(split.test_from), "test")
        late = late.when(F.col("timestamp") >= moment_of(split.validation_from), "validation")
        return kept.withColumn("split", late.otherwise("train"))
    n = split.held_out_per_user
    if split.method == "random":
        sizes = {"test": n, "validation": n}
        return kept.withColumn("split", _random(seed, F.col("positive"), sizes))
    given = F.coalesce("held_out", F.lit("train"))
    if not files_give_validation:
        drawn = _random(seed, F.col("positive") & (given == "train"), {"validation": n})
        given = F.when(given == "train", drawn).otherwise(given)
    return kept.withColumn("split", given)


def _leave_one_out(kept: DataFrame) -> DataFrame:
    """Cut a user's history at its last two positive events; fewer than three are all training."""
    user = Window.partitionBy("user_id")
    sequence = F.when(F.col("positive"), F.col("sequence"))
    kept = kept.withColumns(
        {"_last": F.max(sequence).over(user), "_n": F.count(sequence).over(user)}
    )
    earlier = F.when(F.col("sequence") < F.col("_last"), sequence)
    kept = kept.withColumn("_before_last", F.max(earlier).over(user))
    label = F.when(F.col("_n") < 3, "train").when(F.col("sequence") >= F.col("_last"), "test")
    label = label.when(F.col("sequence") >= F.col("_before_last"), "validation").otherwise("train")
    return kept.withColumn("split", label)


def _random(seed: int, among: Column, sizes: dict[str, int]) -> Column:
    """Give so many of a user's events, in the order of a seeded hash, to each split.

    At least one stays in training: users with fewer than that have all of theirs there.
    """
    draw = F.xxhash64(F.lit(seed), "user", "item", "sequence")
    group = Window.partitionBy("user_id", among)
    place = F.row_number().over(group.orderBy(draw, "item", "sequence"))
    enough = F.count("*").over(group) > sum(sizes.values())
    label = F.when(~(among & enough), "train")
    upto = 0
    for name, size in sizes.items():
        upto += size
        label = label.when(place <= upto, name)
    return label.otherwise("train")
