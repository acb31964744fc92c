"""Accuracy metrics of all models from the one table of ranks, in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recs.evaluation.bootstrap import Key, Totals, estimate, replicate_means, total
from recs.evaluation.metrics import AT_K, TIES, user_metrics
from recs.ranking.lists import offsets_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

METRICS = (
    "model string, protocol string, split string, slice string, metric string, k int, ties string, "
    "value double, lower double, upper double, users bigint"
)
DIFFERENCES = METRICS.replace("model string", "model string, baseline string")

#: Slices that are unions of the disjoint ones that are summed.
_UNIONS = {"warm": ("short", "long"), "all": ("cold", "short", "long")}


@dataclass(frozen=True)
class RankTotals:
    """The sums that metrics and differences are read off; made by :func:`sum_ranks`.

    Attributes
    ----------
    sums
        By (model, protocol, split, slice): int64[1 + metrics, 1 + replicates].
    columns
        Name and k of each metric, k None for the whole list.
    ties
        How ties were counted.
    """

    sums: dict[Key, np.ndarray]
    columns: tuple[tuple[str, int | None], ...]
    ties: str

    def metrics(self, spark: SparkSession) -> DataFrame:
        """Return the table of metrics, :data:`METRICS`."""
        rows = [
            (*key, metric, k, self.ties, *_estimate(means, sums))
            for key, sums in sorted(self.sums.items())
            for (metric, k), means in zip(self.columns, _means(sums), strict=True)
        ]
        return spark.createDataFrame(rows, METRICS)

    def differences(self, spark: SparkSession, baseline: str) -> DataFrame:
        """Return each other model's metrics minus those of ``baseline``, :data:`DIFFERENCES`.

        Raises
        ------
        ValueError
            If the ranks hold no such model.
        """
        models = sorted({key[0] for key in self.sums})
        if baseline not in models:
            raise ValueError(f"baseline {baseline} has no ranks; there are {', '.join(models)}")
        rows = []
        for (model, *where), sums in sorted(self.sums.items()):
            other = self.sums.get((baseline, *where))  # type: ignore[arg-type]
            if model == baseline or other is None:
                continue
            differences = _means(sums) - _means(other)
            for (metric, k), means in zip(self.columns, differences, strict=True):
                key = (model, baseline, *where, metric, k, self.ties)
                rows.append((*key, *_estimate(means, sums)))
        return spark.createDataFrame(rows, DIFFERENCES)


def evaluate_ranks(
    ranks: DataFrame,
    ks: Sequence[int] = (1, 5, 10),
    *,
    ties: str = "against",
    replicates: int = 500,
    seed: int = 0,
    long_history: int = 50,
) -> DataFrame:
    """Return the metrics of every model, protocol, split and slice; see :func:`sum_ranks`."""
    totals = sum_ranks(
        ranks, ks, ties=ties, replicates=replicates, seed=seed, long_history=long_history
    )
    return totals.metrics(ranks.sparkSession)


def sum_ranks(
    ranks: DataFrame,
    ks: Sequence[int] = (1, 5, 10),
    *,
    ties: str = "against",
    replicates: int = 500,
    seed: int = 0,
    long_history: int = 50,
) -> RankTotals:
    """Sum per-user metrics over users, in one pass for metrics and differences alike.

    Metrics are those of :mod:`recs.evaluation.metrics`, at each k and for the whole list, and AUC.
    Every user with a target counts, also one for whom nothing was ranked.

    Slices: ``all``; by history_length, where ranks have it, ``cold`` (none), ``warm`` (some),
    ``short`` (some, below ``long_history``) and ``long``; by the target, where ranks have head,
    ``head`` and ``tail``: metrics over the user's targets of that kind alone.

    Parameters
    ----------
    ranks
        model, protocol, split, user_id, rank (null: not ranked), ties, candidates; perhaps
        history_length and head.
    ks
        Lengths of the list.
    ties
        ``against`` the model or ``half``; see :func:`recs.evaluation.metrics.positions_of`.
    replicates
        Of the bootstrap.
    seed
        Of the bootstrap.
    long_history
        Items from which a history is long.

    Raises
    ------
    ValueError
        If ``ties`` or a k is none of the above, or ranks lack a column.
    """
    from pyspark.sql import functions as F

    if ties not in TIES:
        raise ValueError(f"ties {ties!r} is not known; take {' or '.join(TIES)}")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks {tuple(ks)} must be one or more lengths of 1 or above")
    needed = {"model", "protocol", "split", "user_id", "rank", "ties", "candidates"}
    if not needed <= set(ranks.columns):
        raise ValueError(f"ranks lack column {', '.join(sorted(needed - set(ranks.columns)))}")
    by_history, by_target = "history_length" in ranks.columns, "head" in ranks.columns
    lengths = np.array([*ks, np.inf])

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = Totals(replicates, seed)
        for batch in batches:
            _add_batch(totals, batch, lengths, TIES[ties], by_history, by_target, long_history)
        yield from totals.rows()

    target = F.struct(
        F.coalesce("rank", F.lit(0)).cast("bigint").alias("rank"),
        F.col("ties").cast("bigint").alias("ties"),
        F.col("candidates").cast("bigint").alias("candidates"),
        (F.coalesce("head", F.lit(False)) if by_target else F.lit(False)).alias("head"),
    )
    users = ranks.groupBy("model", "protocol", "split", "user_id").agg(
        F.collect_list(target).alias("targets"),
        (F.max("history_length") if by_history else F.lit(0)).cast("int").alias("history_length"),
    )
    partial = users.mapInArrow(
        run, "model string, protocol string, split string, slice string, sums binary"
    )
    sums = total(partial, replicates)
    if by_history:
        _unite(sums)
    columns = tuple((name, k) for k in (*ks, None) for name in AT_K)
    return RankTotals(sums, (*columns, ("auc", None)), ties)


def _add_batch(
    totals: Totals,
    batch: pa.RecordBatch,
    ks: np.ndarray,
    share: float,
    by_history: bool,
    by_target: bool,
    long_history: int,
) -> None:
    targets = batch.column("targets")
    offsets = offsets_of(targets.value_lengths().to_numpy())
    flat = targets.flatten()
    ranks, ties, candidates = (
        flat.field(name).to_numpy().astype(np.int64) for name in ("rank", "ties", "candidates")
    )
    head = flat.field("head").to_numpy(zero_copy_only=False)

    def measured(counted: np.ndarray) -> np.ndarray:
        return user_metrics(offsets, ranks, ties, candidates, counted, ks, share)

    everyone = np.ones(batch.num_rows, bool)
    slices = [("all", everyone, measured(np.ones(head.size, bool)))]
    if by_history:
        length = batch.column("history_length").to_numpy()
        values = slices.pop()[2]
        slices += [
            ("cold", length == 0, values),
            ("short", (length > 0) & (length < long_history), values),
            ("long", length >= max(long_history, 1), values),
        ]
    if by_target:
        for name, counted in (("head", head), ("tail", ~head)):
            some = np.add.reduceat(np.append(counted, 0), offsets[:-1]) > 0
            slices.append((name, some, measured(counted)))

    groups = []
    names, codes = _codes(batch, ("model", "protocol", "split"))
    for n, name in enumerate(names):
        mine = codes == n
        groups += [((*name, where), mine & members, values) for where, members, values in slices]
    totals.add(batch.column("user_id").to_numpy(), groups)


def _codes(batch: pa.RecordBatch, columns: Sequence[str]) -> tuple[list[tuple], np.ndarray]:
    """Return the distinct values of string columns together, and each row's place among them."""
    joined = pc.binary_join_element_wise(*(batch.column(name) for name in columns), "\x1f")
    encoded = joined.dictionary_encode()
    names = [tuple(name.split("\x1f")) for name in encoded.dictionary.to_pylist()]
    return names, encoded.indices.to_numpy()


def _unite(sums: dict[Key, np.ndarray]) -> None:
    """Add the slices that are unions of disjoint ones."""
    for place in {key[:3] for key in sums}:
        for name, parts in _UNIONS.items():
            there = [sums[*place, part] for part in parts if (*place, part) in sums]
            if there:
                sums[*place, name] = np.sum(there, axis=0)


def _means(sums: np.ndarray) -> np.ndarray:
    return replicate_means(sums[1:], sums[0])


def _estimate(means: np.ndarray, sums: np.ndarray) -> tuple[float, float, float, int]:
    found = estimate(means, int(sums[0, 0]))
    return found.value, found.lower, found.upper, found.users
