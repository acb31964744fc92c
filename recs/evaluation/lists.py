r"""Metrics of the lists themselves: coverage, novelty, diversity, popularity bias, Gini.

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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.arrays.files import load_array, write_arrays
from recs.arrays.lists import offsets_of, read_column
from recs.evaluation.bootstrap import SUMS, UNIT, Totals, estimate, replicate_means, total
from recs.evaluation.grouping import gather_users
from recs.evaluation.ranks import METRICS
from recs.ranking.catalogue import ItemCatalogue

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


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

    def by_item(table: pa.Table) -> dict[str, np.ndarray]:
        item_ids = table.column("item_id").to_numpy()
        if not 0 <= item_ids.min() <= item_ids.max() < num_items:
            raise ValueError(f"categories have item ids outside 0 to {num_items - 1}")
        names, codes = np.unique(table.column("category").to_numpy(), return_inverse=True)
        pairs = np.unique(item_ids.astype(np.int64) * len(names) + codes)
        offsets = offsets_of(np.bincount(pairs // len(names), minlength=num_items))
        return {
            "category-offsets": offsets,
            "categories": (pairs % len(names)).astype(np.int32),
        }

    paths = write_arrays(categories.select("item_id", "category").dropna(), folder, by_item)
    if not paths:
        raise ValueError("no item has a category; leave the categories out")
    return ItemCategories(paths["category-offsets"], paths["categories"])


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
    rows: list[tuple] = []
    num_users = {}
    users, groups = gather_users(used, ["model"], {"rank": "int", "item_id": "int"})
    measure = _measurer(catalogue, categories, ks, replicates, seed)
    for (group, _), sums in sorted(total(users.mapInArrow(measure, SUMS), replicates).items()):
        [model] = groups[group]
        everyone = sums[0]
        num_users[model] = round(everyone[0] * UNIT)
        for n, k in enumerate(ks):
            novelty, bias, diversity, paired = sums[1 + 4 * n : 5 + 4 * n]
            means = {"novelty": (novelty, everyone), "popularity_bias": (bias, everyone)}
            if paired[0]:
                means["diversity"] = diversity, paired
            for metric, (values, counted) in means.items():
                found = estimate(replicate_means(values, counted), counted)
                rows.append((model, "full", split, "all", metric, k, None, *found))
    for row in _count_items(used, catalogue, ks).collect():
        for metric in ("coverage", "gini"):
            key = row.model, "full", split, "all", metric, row.k, None
            rows.append((*key, row[metric], None, None, num_users[row.model]))
    return recommendations.sparkSession.createDataFrame(rows, METRICS)


def _measurer(
    catalogue: ItemCatalogue,
    categories: ItemCategories | None,
    ks: Sequence[int],
    replicates: int,
    seed: int,
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task that sums the per-user metrics of gathered lists."""

    def measure(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = Totals(replicates, seed)
        events = catalogue.train_events
        information = self_information(events)
        percentile = popularity_percentile(events, catalogue.recommendable)
        if categories is None:
            offsets, codes = np.zeros(events.size + 1, np.int64), np.zeros(0, np.int32)
        else:
            offsets, codes = load_array(categories.offsets_path), load_array(categories.codes_path)
        for batch in batches:
            ranks, items = batch.column("rank"), batch.column("item_id")
            values = list_values(
                offsets_of(ranks.value_lengths().to_numpy()),
                ranks.flatten().to_numpy(),
                items.flatten().to_numpy(),
                information,
                percentile,
                offsets,
                codes,
                np.array(ks),
            )
            user_ids = read_column(batch, "user_id")
            nowhere = np.zeros(user_ids.size, np.int32)
            values = np.column_stack([np.ones(user_ids.size), values])
            totals.add(user_ids, read_column(batch, "group"), nowhere, values)
        yield from totals.rows()

    return measure


def _count_items(lists: DataFrame, catalogue: ItemCatalogue, ks: Sequence[int]) -> DataFrame:
    """Return model, k, coverage and gini from how often each item is recommended."""
    from pyspark.sql import functions as F

    def summarise(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
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


@compiled_once()
@njit(cache=True, nogil=True)
def list_values(
    offsets: np.ndarray,
    ranks: np.ndarray,
    items: np.ndarray,
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
        User b's list is at ``offsets[b]:offsets[b + 1]``, in any order.
    ranks, items : int32[nnz]
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
        mine = slice(offsets[u], offsets[u + 1])
        # Rank and item in one number: sorted by rank, and by item where ranks repeat.
        ordered = np.sort((ranks[mine].astype(np.int64) << 32) | items[mine])
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
