"""Accuracy metrics of all models from the one table of ranks, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from recs.arrays.lists import offsets_of
from recs.evaluation.bootstrap import SUMS, Sums, Totals, estimate, replicate_means, total
from recs.evaluation.grouping import Group, gather_users
from recs.evaluation.metrics import TIES, user_metrics
from recs.schema import METRICS_OF_RANKS, TABLES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_MEASURED = [
    column.name
    for column in TABLES["metric_differences"].columns
    if column.name not in ("model", "baseline", "run_id")
]
#: Columns of the tables of the same names, as Spark reads a schema.
METRICS = TABLES["metrics"].ddl("model", *_MEASURED)
DIFFERENCES = TABLES["metric_differences"].ddl("model", "baseline", *_MEASURED)

_KEYS = ("model", "protocol", "split")
#: Cells of users by the length of their history, which are summed apart.
_EMPTY, _SHORT, _LONG = range(3)


class Slice(NamedTuple):
    """Users, or targets, that metrics are over.

    Attributes
    ----------
    name
        As table metrics has it.
    cells
        Cells of the users.
    column, value
        The boolean column of ranks that says which targets are measured, and what it is for them;
        no column where all are.
    """

    name: str
    cells: tuple[int, ...] = (_EMPTY, _SHORT, _LONG)
    column: str | None = None
    value: bool = True

    @property
    def needs(self) -> str | None:
        """The column of ranks without which there is no such slice."""
        of_users = len(self.cells) < 3
        return "history_length" if of_users else self.column


SLICES = (
    Slice("all"),
    Slice("cold", cells=(_EMPTY,)),
    Slice("warm", cells=(_SHORT, _LONG)),
    Slice("short", cells=(_SHORT,)),
    Slice("long", cells=(_LONG,)),
    Slice("head", column="head"),
    Slice("tail", column="head", value=False),
    Slice("repeat", column="repeat"),
    Slice("new", column="repeat", value=False),
)

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

    Slices, of :data:`SLICES` those whose column the ranks have: ``all``; by history_length
    ``cold`` (none), ``warm`` (some), ``short`` (some, below ``long_history``) and ``long``; by the
    target, metrics over the user's targets of that kind alone: by head ``head`` and ``tail``; by
    repeat ``repeat`` (items that the user already had in the splits fitted on) and ``new``. With
    ties against the model they come after the user's other targets of the same score.

    Parameters
    ----------
    ranks
        model, protocol, split, user_id, rank (null: not ranked), ties, candidates; perhaps
        history_length, head and repeat.
    ks
        Lengths of the list.
    ties
        ``against`` the model or at ``random``; see :data:`recs.evaluation.metrics.TIES`.
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
    slices = [part for part in SLICES if part.needs is None or part.needs in ranks.columns]
    selections = list(dict.fromkeys((part.column, part.value) for part in slices))
    flags = sorted({column for column, _ in selections if column})
    lengths = np.array([*ks, np.inf])

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = Totals(replicates, seed)
        for batch in batches:
            values = _measure(batch, lengths, ties == "random", selections)
            history_length = _first(batch, "history_length")
            cells = np.digitize(history_length, [1, max(long_history, 1)])
            codes, users = batch.column("group").to_numpy(), batch.column("user_id").to_numpy()
            totals.add(users, codes, cells, values)
        yield from totals.rows()

    by_history = "history_length" in ranks.columns
    numbers = ranks.select(
        *_KEYS,
        "user_id",
        F.coalesce("rank", F.lit(0)).cast("bigint").alias("rank"),
        F.col("ties").cast("bigint").alias("ties"),
        F.col("candidates").cast("bigint").alias("candidates"),
        (F.col("history_length") if by_history else F.lit(0)).cast("int").alias("history_length"),
        *(F.coalesce(name, F.lit(False)).cast("int").alias(name) for name in flags),
    )
    columns = {"rank": "bigint", "ties": "bigint", "candidates": "bigint", "history_length": "int"}
    users, groups = gather_users(numbers, _KEYS, columns | dict.fromkeys(flags, "int"))
    cells = total(users.mapInArrow(run, SUMS), replicates)
    sums = _slices(cells, groups, slices, selections)
    measured = tuple((name, k) for k in (*ks, None) for name in METRICS_OF_RANKS)
    return RankTotals(sums, (*measured, ("auc", None)), ties)


def _first(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Return the first entry of each user's array."""
    lists = batch.column(name)
    return lists.flatten().to_numpy()[offsets_of(lists.value_lengths().to_numpy())[:-1]]


def _measure(
    batch: pa.RecordBatch,
    ks: np.ndarray,
    random: bool,
    selections: Sequence[tuple[str | None, bool]],
) -> np.ndarray:
    """Return the users' values, float64[B, ...]: for each selection of targets a block of columns,
    1 where the user has such a target, then the metrics."""
    offsets = offsets_of(batch.column("rank").value_lengths().to_numpy())
    ranks, ties, candidates = (
        batch.column(name).flatten().to_numpy() for name in ("rank", "ties", "candidates")
    )
    counted = np.ones((len(selections), ranks.size), bool)
    for row, (column, value) in zip(counted, selections, strict=True):
        if column:
            row[:] = batch.column(column).flatten().to_numpy() == value
    some = np.add.reduceat(counted, offsets[:-1], axis=1, dtype=np.int64) > 0
    found = user_metrics(offsets, ranks, ties, candidates, counted, ks, random)
    return np.concatenate([some.T[:, :, None], found], axis=2).reshape(offsets.size - 1, -1)


def _slices(
    cells: Sums,
    groups: list[Group],
    slices: Sequence[Slice],
    selections: Sequence[tuple[str | None, bool]],
) -> dict[Key, np.ndarray]:
    """Add cells up to slices of users, and cut the columns into slices of targets."""
    sums: dict[Key, np.ndarray] = {}
    for n, (model, protocol, split) in enumerate(groups):
        for part in slices:
            there = [cells[n, cell] for cell in part.cells if (n, cell) in cells]
            if there:
                blocks = np.split(np.sum(there, axis=0), len(selections))
                block = blocks[selections.index((part.column, part.value))]
                if block[0, 0]:
                    sums[model, protocol, split, part.name] = block
    return sums


def _means(sums: np.ndarray) -> np.ndarray:
    return replicate_means(sums[1:], sums[0])


@dataclass(frozen=True)
class Shortage:
    """Targets that were ranked among fewer sampled candidates than their protocol says.

    Attributes
    ----------
    protocol
        Its name.
    wanted
        Candidates to be sampled for each user.
    targets
        How many targets had fewer, of all models alike.
    fewest
        The smallest number that was sampled.
    """

    protocol: str
    wanted: int
    targets: int
    fewest: int

    def __str__(self) -> str:
        return (
            f"{self.protocol}: {self.targets} targets were ranked among fewer than {self.wanted} "
            f"sampled items (the fewest: {self.fewest}), for their users have events of all "
            "others; among so few they end higher: read the figures of protocol full instead"
        )


def shortages(ranks: DataFrame, wanted: Mapping[str, int]) -> list[Shortage]:
    """Return the protocols under which some users had fewer candidates than the protocol's number.

    Parameters
    ----------
    ranks
        protocol, user_id, candidates, of one model: those of another are the same.
    wanted
        Sampled protocols, and the candidates that each samples for a user.
    """
    from pyspark.sql import functions as F

    if not wanted:
        return []
    sampled = F.col("candidates") - F.col("targets")
    users = ranks.where(F.col("protocol").isin(*wanted)).groupBy("protocol", "user_id")
    counted = users.agg(F.count("*").alias("targets"), F.max("candidates").alias("candidates"))
    short = F.lit(False)
    for name, number in wanted.items():
        short = short | ((F.col("protocol") == name) & (sampled < number))
    found = counted.where(short).groupBy("protocol")
    rows = found.agg(F.sum("targets").alias("targets"), F.min(sampled).alias("fewest")).collect()
    return [
        Shortage(row.protocol, wanted[row.protocol], row.targets, row.fewest)
        for row in sorted(rows, key=lambda row: row.protocol)
    ]
