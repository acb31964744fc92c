"""Events in dense ids and order, each in its split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from recs.config import Events, Split
from recs.data.sources import moment_of
from recs.errors import UserError
from recs.schema import EVENT_ORDER

#: Items whose ids are sent to every task, some 60 bytes each; more are joined by a shuffle of all
#: events, skewed by how popular items are.
_MAX_BROADCAST = 2_000_000


class SplitError(UserError):
    """Settings under which no interaction is left, or that events do not go with."""


def weighted(events: DataFrame, settings: Events) -> DataFrame:
    """Return events with what the settings make of them: event_type, weight and polarity.

    An event without a type is of the default type, one without a value has the value 1. ``weight``
    is the value times its type's weight, ``positive`` whether the type's polarity is.

    Parameters
    ----------
    events
        Table ``events``.
    settings
        Weights and polarities of the types; an event of another type is an error in the task, which
        :func:`telling_unknown_types` tells.
    """
    kind = F.coalesce("event_type", F.lit(settings.default_type))
    unknown = F.raise_error(F.concat(F.lit(_UNKNOWN), kind, F.lit(_UNKNOWN_MEND)))
    factor, positive = unknown.cast("double"), F.lit(None).cast("boolean")
    for name, event_type in settings.types.items():
        factor = F.when(kind == name, F.lit(event_type.weight)).otherwise(factor)
        positive = F.when(kind == name, event_type.polarity == "positive").otherwise(positive)
    return events.withColumns(
        {
            "event_type": kind,
            "weight": F.coalesce("value", F.lit(1.0)) * factor,
            "positive": positive,
        }
    )


_UNKNOWN = "table events holds events of type "
_UNKNOWN_MEND = ", which events.types no longer lists: give the type a weight and a polarity there"


@contextmanager
def telling_unknown_types() -> Iterator[None]:
    """Tell an event type that the settings lack as a user's mistake.

    Raises
    ------
    SplitError
        With the type.
    """
    try:
        yield
    except PySparkException as error:
        told = re.search(f"{_UNKNOWN}.*{_UNKNOWN_MEND}", str(error))
        if told is None:
            raise
        raise SplitError(told.group()) from error


def require_some(num_events: int, split: Split) -> None:
    """Say why no interaction is left.

    Raises
    ------
    SplitError
        With the settings that may be at fault.
    """
    if not num_events:
        raise SplitError("table events holds no event: deliver some, and run ingest again")
    raise SplitError(
        f"split.min_user_events={split.min_user_events}, "
        f"split.min_item_events={split.min_item_events} leave none of {num_events:,} events: lower "
        "them"
    )


def interactions(
    events: DataFrame,
    order_of_sources: DataFrame,
    user_ids: DataFrame,
    item_ids: DataFrame,
    split: Split,
    *,
    num_items: int,
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
    events
        Of :func:`weighted`.
    order_of_sources
        Of :func:`recs.data.files.order_of_sources`.
    user_ids, item_ids
        The tables.
    split
        How to split; see :class:`recs.config.Split`.
    num_items
        Rows of ``item_ids``.
    hold_out
        False puts everything in ``train`` (mode ``serve``).
    files_give_validation
        Whether an event source is held out as validation (method ``files``).
    seed
        Of the random choices, which depend on it and on events as delivered alone.
    """
    known_items = item_ids.select("item", "item_id")
    if num_items <= _MAX_BROADCAST:
        known_items = F.broadcast(known_items)
    kept = events.join(F.broadcast(order_of_sources), "source").join(known_items, "item")
    # The one exchange: windows are by (user_id, user), which rows that a user shares fulfil.
    kept = kept.join(user_ids.select("user", "user_id"), "user")
    kept = _cap(kept, split)
    kept = _merge_repeats(kept) if split.repeats == "merge" else kept
    kept = _k_core(kept, split.min_user_events, split.min_item_events)
    order = Window.partitionBy(*_USER).orderBy(*EVENT_ORDER)
    kept = kept.withColumn("sequence", F.row_number().over(order) - 1)
    if hold_out:
        kept = _hold_out(kept, split, files_give_validation, seed)
    else:
        kept = kept.withColumn("split", F.lit("train"))
    return kept.select(
        "user_id",
        "item_id",
        "sequence",
        "timestamp",
        "event_type",
        "weight",
        "positive",
        "split",
        "event_id",
        "context",
    )


#: As rows lie after they were joined with their users' numbers, by id; and in the order of numbers,
#: so that the table is written user by user.
_USER = ("user_id", "user")


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
        count = F.count("*").over(Window.partitionBy(*_USER))
        return events.withColumn("_n", count).where(F.col("_n") <= split.max_user_events).drop("_n")
    newest = [F.desc(column) for column in EVENT_ORDER]
    rank = F.row_number().over(Window.partitionBy(*_USER).orderBy(*newest))
    return (
        events.withColumn("_rank", rank)
        .where(F.col("_rank") <= split.max_user_events)
        .drop("_rank")
    )


def _merge_repeats(events: DataFrame) -> DataFrame:
    """Keep the last of a user's events of an item and polarity, with the sum of their weights."""
    pair = Window.partitionBy(*_USER, "item_id", "positive")
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
    user = Window.partitionBy(*_USER)
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
    draw = F.xxhash64(F.lit(seed), "event_id")
    group = Window.partitionBy(*_USER, among)
    place = F.row_number().over(group.orderBy(draw, "event_id"))
    enough = F.count("*").over(group) > sum(sizes.values())
    label = F.when(~(among & enough), "train")
    upto = 0
    for name, size in sizes.items():
        upto += size
        label = label.when(place <= upto, name)
    return label.otherwise("train")
