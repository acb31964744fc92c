"""Accuracy metrics of all models from the one table of ranks, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from recs.arrays.lists import offsets_of
from recs.evaluation.bootstrap import SUMS, Sums, Totals, estimate, replicate_means, total
from recs.evaluation.grouping import Group, by_user
from recs.evaluation.metrics import AT_K, TIES, user_metrics

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

METRICS = (
    "model string, protocol string, split string, slice string, metric string, k int, ties string, "
    "value double, lower double, upper double, users bigint"
)
DIFFERENCES = METRICS.replace("model string", "model string, baseline string")

#: Slices of users, as unions of the cells that are summed: users whose history is empty, short,
#: long.
_USER_SLICES = {"all": (0, 1, 2), "cold": (0,), "warm": (1, 2), "short": (1,), "long": (2,)}
_KEYS = ("model", "protocol", "split")
#: What is gathered of each target.
_COLUMNS = {
    "rank": "bigint",
    "ties": "bigint",
    "candidates": "bigint",
    "history_length": "int",
    "head": "int",
}

#: (model, protocol, split, slice)
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class RankTotals:
    """The sums that metrics and differences are read off; made by :func:`sum_ranks`.

    Attributes
    ----------
    sums
        By (model, protocol, split, slice): int64[1 + metrics, 1 + replicates], users first.
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
            (*key, metric, k, self.ties, *estimate(means, sums[0]))
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
                rows.append((*key, *estimate(means, sums[0])))
        return spark.createDataFrame(rows, DIFFERENCES)


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
    ``head`` and ``tail``: metrics over the user's targets of that kind alone, which come after the
    user's other targets of the same score.

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
    needed = {*_KEYS, "user_id", "rank", "ties", "candidates"}
    if not needed <= set(ranks.columns):
        raise ValueError(f"ranks lack column {', '.join(sorted(needed - set(ranks.columns)))}")
    by_history, by_target = "history_length" in ranks.columns, "head" in ranks.columns
    lengths = np.array([*ks, np.inf])

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = Totals(replicates, seed)
        for batch in batches:
            values, history_length = _measure(batch, lengths, TIES[ties], by_target)
            cells = np.digitize(history_length, [1, max(long_history, 1)])
            codes, users = batch.column("group").to_numpy(), batch.column("user_id").to_numpy()
            totals.add(users, codes, cells, values)
        yield from totals.rows()

    numbers = ranks.select(
        *_KEYS,
        "user_id",
        F.coalesce("rank", F.lit(0)).cast("bigint").alias("rank"),
        F.col("ties").cast("bigint").alias("ties"),
        F.col("candidates").cast("bigint").alias("candidates"),
        (F.col("history_length") if by_history else F.lit(0)).cast("int").alias("history_length"),
        (F.coalesce("head", F.lit(False)) if by_target else F.lit(False)).cast("int").alias("head"),
    )
    users, groups = by_user(numbers, _KEYS, _COLUMNS)
    cells = total(users.mapInArrow(run, SUMS), replicates)
    sums = _slices(cells, groups, by_history, by_target)
    columns = tuple((name, k) for k in (*ks, None) for name in AT_K)
    return RankTotals(sums, (*columns, ("auc", None)), ties)


def _measure(
    batch: pa.RecordBatch, ks: np.ndarray, share: float, by_target: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the users' values and history lengths.

    The values are blocks of columns for all targets and, ``by_target``, head and tail targets: 1
    where the user has such a target, then the metrics.
    """
    offsets = offsets_of(batch.column("rank").value_lengths().to_numpy())
    ranks, ties, candidates, history, head = (
        batch.column(name).flatten().to_numpy() for name in _COLUMNS
    )
    chosen = [np.ones(head.size, bool)]
    if by_target:
        chosen += [head == 1, head == 0]
    blocks = []
    for counted in chosen:
        some = np.add.reduceat(counted.astype(np.int64), offsets[:-1]) > 0
        found = user_metrics(offsets, ranks, ties, candidates, counted, ks, share)
        blocks += [some[:, None].astype(float), found]
    return np.hstack(blocks), history[offsets[:-1]]


def _slices(
    cells: Sums, groups: list[Group], by_history: bool, by_target: bool
) -> dict[Key, np.ndarray]:
    """Add cells up to slices of users, and cut the columns into slices of targets."""
    sums: dict[Key, np.ndarray] = {}
    for n, (model, protocol, split) in enumerate(groups):
        for name, parts in _USER_SLICES.items():
            there = [cells[n, part] for part in parts if (n, part) in cells]
            if not there or not (by_history or name == "all"):
                continue
            blocks = np.split(np.sum(there, axis=0), 3 if by_target else 1)
            sums[model, protocol, split, name] = blocks[0]
            if name == "all" and by_target:
                for kind, block in zip(("head", "tail"), blocks[1:], strict=True):
                    if block[0, 0]:
                        sums[model, protocol, split, kind] = block
    return sums


def _means(sums: np.ndarray) -> np.ndarray:
    return replicate_means(sums[1:], sums[0])
