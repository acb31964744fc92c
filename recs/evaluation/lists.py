r"""Metrics of the recommended lists themselves: coverage, novelty, diversity, popularity bias, Gini.

With L_u the first k items recommended to user u, C the recommendable items, and U the users who
have a list:

- coverage@k = |∪_u L_u ∩ C| / |C|
- novelty@k = mean over u of the mean over i ∈ L_u of −log2 p(i), p(i) the share of training events
  that are of item i (mean self-information, Zhou et al. 2010, Vargas and Castells 2011); items
  without an event count as if they had one
- diversity@k = mean over u of 1 − the mean cosine over pairs of items in L_u, of their vectors of
  categories (intra-list diversity, Smyth and McClave 2001). Items without categories are left out,
  and so are users with fewer than two items that have some.
  With c_i the unit vectors and n of them, Σ_{i≠j} c_i·c_j = ‖Σ_i c_i‖² − n: linear in k.
- popularity_bias@k = mean over u of the mean over i ∈ L_u of the share of C with fewer training
  events than i, those with as many counted half: 0.5 as if drawn at random from C, near 1 if only
  the most popular are recommended
- gini@k = the Gini coefficient of how often each item of C is recommended: 0 if all equally often,
  near 1 if all lists show the same few
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numba import njit

from recs.evaluation.bootstrap import UNIT, Totals, estimate, replicate_means, total
from recs.evaluation.ranks import METRICS
from recs.ranking.files import ItemCatalogue, load_array, save_array
from recs.ranking.lists import offsets_of, read_column, to_arrow

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: Columns of :func:`list_values` for each k; ``paired`` is 1 where diversity is defined.
_COLUMNS = ("novelty", "popularity_bias", "diversity", "paired")


@dataclass(frozen=True)
class ItemCategories:
    """The categories of each item, as files that every host reaches.

    Attributes
    ----------
    offsets_path, codes_path
        URIs of int64[N+1] and int32[nnz] ``.npy`` files: item i has the categories numbered
        ``codes[offsets[i]:offsets[i + 1]]``.
    """

    offsets_path: str
    codes_path: str


def write_categories(categories: DataFrame, folder: str, num_items: int) -> ItemCategories:
    """Write ``categories`` (item_id, category: a row each) under ``folder``, in one Spark task."""

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        received = [batch for batch in batches if batch.num_rows]
        if not received:
            return
        table = pa.Table.from_batches(received)
        item_ids = table.column("item_id").to_numpy()
        if not 0 <= item_ids.min() <= item_ids.max() < num_items:
            raise ValueError(f"categories have item ids outside 0 to {num_items - 1}")
        names, codes = np.unique(table.column("category").to_numpy(), return_inverse=True)
        pairs = np.unique(item_ids.astype(np.int64) * len(names) + codes)
        offsets = offsets_of(np.bincount(pairs // len(names), minlength=num_items))
        yield pa.RecordBatch.from_pydict(
            {
                "offsets": [save_array(offsets, folder, "category-offsets")],
                "codes": [save_array((pairs % len(names)).astype(np.int32), folder, "categories")],
            }
        )

    rows = categories.select("item_id", "category").dropna().repartition(1)
    written = rows.mapInArrow(write, "offsets string, codes string").collect()
    if not written:
        raise ValueError("no item has a category; leave the categories out")
    return ItemCategories(written[0]["offsets"], written[0]["codes"])


def evaluate_lists(
    recommendations: DataFrame,
    catalogue: ItemCatalogue,
    categories: ItemCategories | None = None,
    ks: Sequence[int] = (10,),
    *,
    split: str = "test",
    replicates: int = 500,
    seed: int = 0,
) -> DataFrame:
    """Return the metrics of this module for each model's lists.

    Parameters
    ----------
    recommendations
        model, user_id, rank, item_id; in any order, fastest with each user's rows together.
    catalogue
        Names the recommendable items and their training events.
    categories
        Without them there is no diversity.
    ks
        Lengths of the list; a shorter list is taken as it is.
    split
        Written beside the metrics: what the lists were made for.
    replicates, seed
        Of the bootstrap. Coverage and Gini are of all lists together and have no interval.

    Returns
    -------
    DataFrame
        :data:`~recs.evaluation.ranks.METRICS`; protocol is ``full``, ties null. Users without a
        list are not counted.

    Raises
    ------
    ValueError
        If a k is below 1 or a column is missing.
    """
    from pyspark.sql import functions as F

    if not ks or min(ks) < 1:
        raise ValueError(f"ks {tuple(ks)} must be one or more lengths of 1 or above")
    missing = {"model", "user_id", "rank", "item_id"} - set(recommendations.columns)
    if missing:
        raise ValueError(f"recommendations lack column {', '.join(sorted(missing))}")
    ks = sorted(set(ks))
    used = recommendations.where(F.col("rank") <= ks[-1]).select(
        "model", "user_id", "rank", "item_id"
    )
    models = sorted(row.model for row in used.select("model").distinct().collect())
    sums = _sum_users(used, models, catalogue, categories, ks, replicates, seed)
    where = (split, "all")
    rows = []
    users = {}
    for (model, *_), of_model in sorted(sums.items()):
        users[model] = int(of_model[0, 0])
        for n, k in enumerate(ks):
            column = dict(zip(_COLUMNS, of_model[1 + 4 * n :], strict=False))
            of = {"novelty": of_model[0], "popularity_bias": of_model[0]}
            if column["paired"][0]:
                of["diversity"] = column["paired"] * UNIT
            for metric, counted in of.items():
                found = estimate(replicate_means(column[metric], counted), int(counted[0]))
                interval = found.value, found.lower, found.upper, found.users
                rows.append((model, "full", *where, metric, k, None, *interval))
    for row in _count_items(used, catalogue, ks).collect():
        for metric in ("coverage", "gini"):
            value = row[metric]
            key = row.model, "full", *where, metric, row.k
            rows.append((*key, None, value, None, None, users[row.model]))
    return recommendations.sparkSession.createDataFrame(rows, METRICS)


def _sum_users(
    lists: DataFrame,
    models: Sequence[str],
    catalogue: ItemCatalogue,
    categories: ItemCategories | None,
    ks: Sequence[int],
    replicates: int,
    seed: int,
) -> dict:
    """Sum the per-user metrics; see :class:`~recs.evaluation.bootstrap.Totals`."""
    from pyspark.sql import functions as F

    def pack(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Turn each run of rows of one user into one row, so that few rows are shuffled."""
        for batch in batches:
            keys = np.stack([read_column(batch, "model"), read_column(batch, "user_id")])
            ranks = read_column(batch, "rank", np.int64)
            entries = (ranks << 32) | read_column(batch, "item_id")
            changes = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
            starts = np.concatenate([[0], changes]) if batch.num_rows else changes
            yield pa.RecordBatch.from_pydict(
                {
                    "model": keys[0, starts],
                    "user_id": keys[1, starts],
                    "entries": to_arrow(np.append(starts, batch.num_rows), pa.array(entries)),
                }
            )

    def measure(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = Totals(replicates, seed)
        events = catalogue.train_events
        information = self_information(events)
        percentile = popularity_percentile(events, catalogue.recommendable)
        if categories is None:
            offsets, codes = np.zeros(events.size + 1, np.int64), np.zeros(0, np.int32)
        else:
            offsets, codes = load_array(categories.offsets_path), load_array(categories.codes_path)
        for batch in batches:
            entries = batch.column("entries")
            values = list_values(
                offsets_of(entries.value_lengths().to_numpy()),
                entries.flatten().to_numpy(),
                information,
                percentile,
                offsets,
                codes,
                np.array(ks),
            )
            of_model = read_column(batch, "model")
            groups = [
                ((models[n], "full", "", "all"), of_model == n, values)
                for n in np.unique(of_model)
            ]
            totals.add(read_column(batch, "user_id"), groups)
        yield from totals.rows()

    code = F.array_position(F.array(*map(F.lit, models)), F.col("model")) - 1
    packed = lists.withColumn("model", code.cast("int")).mapInArrow(
        pack, "model int, user_id int, entries array<bigint>"
    )
    users = packed.groupBy("model", "user_id").agg(
        F.flatten(F.collect_list("entries")).alias("entries")
    )
    partial = users.mapInArrow(
        measure, "model string, protocol string, split string, slice string, sums binary"
    )
    return total(partial, replicates)


def _count_items(lists: DataFrame, catalogue: ItemCatalogue, ks: Sequence[int]) -> DataFrame:
    """Return model, k, coverage and gini from how often each item is recommended."""
    from pyspark.sql import functions as F

    def summarise(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        recommendable = catalogue.recommendable
        counts: dict[str, np.ndarray] = {}  # model: int64[K, N]
        for batch in batches:
            names = batch.column("model").dictionary_encode()
            items = read_column(batch, "item_id")
            for n, name in enumerate(names.dictionary.to_pylist()):
                mine = names.indices.to_numpy() == n
                of_model = counts.setdefault(
                    name, np.zeros((len(ks), recommendable.size), np.int64)
                )
                for row, k in enumerate(ks):
                    of_model[row, items[mine]] = read_column(batch, f"at_{k}", np.int64)[mine]
        for name, of_model in counts.items():
            kept = of_model[:, recommendable]
            yield pa.RecordBatch.from_pydict(
                {
                    "model": [name] * len(ks),
                    "k": np.array(ks, np.int32),
                    "coverage": (kept > 0).mean(axis=1),
                    "gini": [gini(row) for row in kept],
                }
            )

    counts = lists.groupBy("model", "item_id").agg(
        *(F.count_if(F.col("rank") <= k).alias(f"at_{k}") for k in ks)
    )
    return counts.repartition("model").mapInArrow(
        summarise, "model string, k int, coverage double, gini double"
    )


def self_information(train_events: np.ndarray) -> np.ndarray:
    """Return −log2 of each item's share of the training events, float64[N].

    >>> self_information(np.array([4, 2, 1, 1, 0]))
    array([1., 2., 3., 3., 3.])
    """
    return np.log2(max(train_events.sum(), 1)) - np.log2(np.maximum(train_events, 1))


def popularity_percentile(train_events: np.ndarray, recommendable: np.ndarray) -> np.ndarray:
    """Return the share of recommendable items less popular than each item, equals as half.

    >>> popularity_percentile(np.array([9, 5, 5, 1, 0]), np.array([True, True, True, True, False]))
    array([0.875, 0.5  , 0.5  , 0.125, 0.   ])
    """
    ascending = np.sort(train_events[recommendable])
    below = np.searchsorted(ascending, train_events, side="left")
    reach = np.searchsorted(ascending, train_events, side="right")
    return (below + reach) / (2.0 * max(ascending.size, 1))


def gini(counts: np.ndarray) -> float:
    """Return the Gini coefficient Σ_i (2i − n − 1) x_(i) / (n Σ x), x ascending, i from 1.

    >>> gini(np.array([3, 3, 3])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ascending = np.sort(counts)
    weights = 2 * np.arange(1, counts.size + 1) - counts.size - 1
    return float(weights @ ascending / (counts.size * max(ascending.sum(), 1)))


@njit(cache=True, nogil=True)
def list_values(
    offsets: np.ndarray,
    entries: np.ndarray,
    information: np.ndarray,
    percentile: np.ndarray,
    category_offsets: np.ndarray,
    categories: np.ndarray,
    ks: np.ndarray,
) -> np.ndarray:
    """Return each user's metrics at each k.

    Parameters
    ----------
    offsets : int64[B+1]
        User b's list is ``entries[offsets[b]:offsets[b + 1]]``, in any order.
    entries : int64[nnz]
        ``rank << 32 | item_id``.
    information, percentile : float64[N]
        By :func:`self_information` and :func:`popularity_percentile`.
    category_offsets, categories : int64[N+1], int32[...]
        As in :class:`ItemCategories`.
    ks : int64[K]
        Ascending.

    Returns
    -------
    float64[B, 4K]
        For each k novelty, popularity bias, diversity, and 1 where diversity is defined.
    """
    num_users = offsets.size - 1
    out = np.zeros((num_users, 4 * ks.size))
    num_categories = 0
    for code in categories:
        num_categories = max(num_categories, code + 1)
    sums = np.zeros(num_categories)  # Σ c_i over the items so far
    for u in range(num_users):
        ordered = np.sort(entries[offsets[u] : offsets[u + 1]])
        novelty, bias, squares, num_paired, length = 0.0, 0.0, 0.0, 0, 0
        for n in range(ks.size):
            while length < ordered.size and ordered[length] >> 32 <= ks[n]:
                item = ordered[length] & 0xFFFFFFFF
                length += 1
                novelty += information[item]
                bias += percentile[item]
                start, stop = category_offsets[item], category_offsets[item + 1]
                num_paired += stop > start
                for p in range(start, stop):
                    share = 1.0 / np.sqrt(stop - start)
                    squares += share * (2.0 * sums[categories[p]] + share)
                    sums[categories[p]] += share
            out[u, 4 * n] = novelty / max(length, 1)
            out[u, 4 * n + 1] = bias / max(length, 1)
            if num_paired > 1:
                pairs = num_paired * (num_paired - 1.0)
                out[u, 4 * n + 2] = 1.0 - (squares - num_paired) / pairs
                out[u, 4 * n + 3] = 1.0
        for p in range(length):
            item = ordered[p] & 0xFFFFFFFF
            for q in range(category_offsets[item], category_offsets[item + 1]):
                sums[categories[q]] = 0.0
    return out
