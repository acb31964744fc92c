"""Negatives of every positive event that models are fitted on, in one pass over the events.

The events and one row a user with all that the user wants are brought together by user and sorted
by one packed number; a kernel then goes through them as a stream
(:class:`recs.sampling.EventStream`), so that no user's events are ever held at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType

from recs.arrays.files import item_vector, load_array, write_arrays
from recs.arrays.lists import read_column, read_lists, to_arrow
from recs.arrays.streams import by_user, packed
from recs.config import NegativeRule, Negatives
from recs.errors import UserError
from recs.sampling import (
    EVENT,
    EXPLICIT,
    WANTED,
    EventNegatives,
    EventStream,
    Groups,
    group_items,
)
from recs.schema import TABLES

_NEGATIVES = TABLES["negatives"].ddl("user_id", "sequence", "item_id", "negatives")


@dataclass(frozen=True)
class GroupFiles:
    """Written :class:`~recs.sampling.Groups`: the URI of each array's file, in order."""

    paths: tuple[str, ...]

    def open(self) -> Groups:
        """Map the arrays into memory, once a process."""
        return Groups(*(load_array(path) for path in self.paths))


def negatives(
    interactions: DataFrame,
    user_positives: DataFrame,
    catalogue: DataFrame,
    items: DataFrame | None,
    config: Negatives,
    *,
    fit_splits: Sequence[str],
    folder: str,
    num_items: int,
    seed: int,
) -> DataFrame:
    """Draw up to ``per_positive`` negatives for each positive event of the splits fitted on.

    What is drawn depends on the seed, the user, the event's ``sequence`` and what the tables say of
    the user and of the items; never on partitions or the order of rows. No negative is an item of
    the user's positives in ``fit_splits``, and none is twice with one event.

    Parameters
    ----------
    interactions
        user_id, item_id, sequence, event_type, positive, split.
    user_positives
        user_id, and an array<int> a split; a row for each user with a positive event.
    catalogue
        item_id, train_events, recommendable. Items that are recommendable are drawn.
    items
        item_id and the columns that the rules name, a row an item; needed with rules only.
    config
        Sampler, rules, explicit types and what to do when there are too few.
    fit_splits
        Splits whose events count.
    folder
        URI on storage that all hosts reach; gets the sampler's arrays, 36 bytes an item (with
        rules: an item and group it is in).
    num_items
        Size of the vocabulary.
    seed
        Another seed, other negatives.

    Returns
    -------
    DataFrame
        user_id int, sequence int, item_id int, negatives array<int>. Rows of a user are in one
        partition, in the order of events.

    Raises
    ------
    UserError
        If a rule names a column that no item has a value in, or there is nothing to draw from; in
        the task, if the tables contradict each other or, with ``shortage: error``, a user has too
        few items left.
    """
    groups = write_groups(catalogue, items, config, folder, num_items)
    size, fewer, explicit = config.per_positive, config.shortage == "fewer", bool(config.explicit)

    def draw(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        stream = EventStream(groups.open(), size, seed=seed, explicit=explicit, fewer=fewer)
        for batch in batches:
            keys, item_ids = read_column(batch, "key", np.int64), read_column(batch, "item_id")
            wanted = read_lists(batch, "positives")
            drawn = stream.draw(keys, item_ids, (wanted.offsets, wanted.items))
            if drawn.rows.size:
                yield _to_arrow(keys, item_ids, drawn)

    rows = _rows(interactions, user_positives, config.explicit, fit_splits)
    return by_user(rows).mapInArrow(draw, _NEGATIVES)


def _rows(
    interactions: DataFrame,
    user_positives: DataFrame,
    explicit: Sequence[str],
    fit_splits: Sequence[str],
) -> DataFrame:
    """Return (key bigint, item_id int, positives array<int>) as an EventStream reads them.

    One number to sort by lets Spark sort by radix, without comparing rows. Events have an empty
    array, not a null: Spark fills the offsets of all nulls at a batch's end anew with each row.
    """
    none = F.array().cast("array<int>")
    fitted = interactions.where(F.col("split").isin(*fit_splits))
    event = F.col("sequence") + EVENT
    if explicit:
        fitted = fitted.where(F.col("positive") | F.col("event_type").isin(*explicit))
        event = F.when(F.col("positive"), event).otherwise(EXPLICIT)
    else:
        fitted = fitted.where("positive")
    events = fitted.select(
        packed("user_id", event).alias("key"), "item_id", none.alias("positives")
    )
    wanted = F.concat(*(F.coalesce(split, none) for split in fit_splits))
    users = user_positives.select(
        packed("user_id", F.lit(WANTED)).alias("key"),
        F.lit(-1).alias("item_id"),
        wanted.alias("positives"),
    )
    return events.unionByName(users)


def _to_arrow(keys: np.ndarray, item_ids: np.ndarray, drawn: EventNegatives) -> pa.RecordBatch:
    keys = keys[drawn.rows]
    return pa.RecordBatch.from_pydict(
        {
            "user_id": (keys >> 32).astype(np.int32),
            "sequence": ((keys & 0xFFFFFFFF) - EVENT).astype(np.int32),
            "item_id": item_ids[drawn.rows],
            "negatives": to_arrow(drawn.offsets, pa.array(drawn.items)),
        }
    )


def write_groups(
    catalogue: DataFrame,
    items: DataFrame | None,
    config: Negatives,
    folder: str,
    num_items: int,
) -> GroupFiles:
    """Write what negatives are drawn from under ``folder``; one Spark task does, not the driver."""
    columns = ["item_id", "train_events", "recommendable"]
    rows = catalogue.select(*columns)
    if config.rules:
        rows = rows.join(rule_groups(items, config.rules), "item_id", "full")
        columns.append("group")
    popular, alpha, ruled = config.sampler == "popularity", config.alpha, bool(config.rules)

    def groups(table: pa.Table) -> dict[str, np.ndarray]:
        item_ids = table.column("item_id").to_numpy()
        listed, first = np.unique(item_ids, return_index=True)
        drawn = table.column("recommendable").fill_null(False).to_numpy()[first]
        events = table.column("train_events").fill_null(0).to_numpy()[first]
        weights = drawn * (events.astype(np.float64) ** alpha if popular else 1.0)
        weights = item_vector(listed, weights, num_items, "float64")
        pairs = None
        if ruled:
            grouped = table.filter(table.column("group").is_valid())
            pairs = grouped.column("item_id").to_numpy(), _numbered(grouped.column("group"))
        return group_items(weights, pairs)._asdict()

    paths = write_arrays(rows.select(*columns), folder, groups)
    if not paths:
        raise UserError("no negatives can be drawn: the catalogue is empty; run the split first")
    return GroupFiles(tuple(paths[name] for name in Groups._fields))


def _numbered(names: pa.ChunkedArray) -> np.ndarray:
    """Return int32 numbers of the names, in the order of the names."""
    coded = names.combine_chunks().dictionary_encode()
    order = pc.array_sort_indices(coded.dictionary).to_numpy()
    number = np.empty(order.size, np.int32)
    number[order] = np.arange(order.size)
    return number[coded.indices.to_numpy()]


def rule_groups(items: DataFrame | None, rules: Sequence[NegativeRule]) -> DataFrame:
    """Return (item_id int, group string): items that share a group may stand against each other.

    A group is one value (or band) of each rule's column. An item of several categories is in
    several groups; one that lacks a value of some column is in none.

    Raises
    ------
    UserError
        If a rule names a column that no item has a value in.
    """
    if items is None:
        names = ", ".join(rule.column for rule in rules)
        raise UserError(
            f"negatives.rules name {names}, but nothing is known of items: give items a source"
        )
    values = [_values(items, rule) for rule in rules]
    held = items.agg(*(F.max(F.size(value) > 0).alias(str(n)) for n, value in enumerate(values)))
    for rule, found in zip(rules, held.first() or [], strict=True):
        if not found:
            what = "number" if rule.edges else "value"
            raise UserError(
                f"negatives.rules: no item has a {what} in column {rule.column!r}; items have "
                f"{', '.join(_known_columns(items))}"
            )
    combined = items.select("item_id", *(v.alias(f"_{n}") for n, v in enumerate(values)))
    for n in range(len(rules)):
        combined = combined.withColumn(f"_{n}", F.explode(f"_{n}"))
    group = F.to_json(F.array(*(f"_{n}" for n in range(len(rules)))))
    return combined.select("item_id", group.alias("group"))


def _values(items: DataFrame, rule: NegativeRule) -> Column:
    """Return array<string>: the different values (or bands) that an item has under a rule."""
    if rule.column not in ("item_id", "attributes") and rule.column in items.columns:
        value = F.col(rule.column)
    elif "attributes" in items.columns:
        value = F.try_element_at("attributes", F.lit(rule.column))
    else:
        value = F.lit(None).cast("string")
    if not isinstance(items.select(value).schema[0].dataType, ArrayType):
        value = F.array(value)
    present = F.transform(value, lambda v: F.trim(v.cast("string")))
    if rule.edges is not None:
        edges = rule.edges
        present = F.transform(present, lambda v: _band(v, edges))
    present = F.filter(present, lambda v: v.isNotNull() & (v != ""))
    return F.coalesce(F.array_distinct(present), F.array().cast("array<string>"))


def _band(text: Column, edges: Sequence[float]) -> Column:
    """Return the number of edges that a number reaches, as text; null where it is no number."""
    number = text.try_cast("double")
    reached = reduce(Column.__add__, (F.when(number >= e, 1).otherwise(0) for e in edges), F.lit(0))
    return F.when(number.isNotNull() & ~F.isnan(number), reached.cast("string"))


def _known_columns(items: DataFrame) -> list[str]:
    """Return what rules may name, for people to read."""
    names = [name for name in items.columns if name not in ("item_id", "attributes")]
    if "attributes" in items.columns:
        keys = items.select(F.explode(F.map_keys("attributes")).alias("key")).distinct()
        names += sorted(row["key"] for row in keys.limit(20).collect())
    return names
