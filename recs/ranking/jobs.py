"""Recommend, score and rank with Spark: one pass over the histories, in bounded blocks.

All three go through ``DataFrame.mapInArrow``: mapPartitions over Arrow batches, which also runs on
Spark Connect and shared clusters. Users are scored in blocks whose scores stay below
:data:`~recs.ranking.scoring.BLOCK_SCORES` numbers, whatever the number of items.

Histories are a DataFrame of one row a user: user_id int, history array<int> (what models read),
values array<float> (as long), seen array<int> (never to be recommended); for embeddings also
vector array<float>, the user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from recs.arrays.lists import (
    Lists,
    blocks,
    offsets_of,
    read_column,
    read_lists,
    read_vectors,
    to_arrow,
)
from recs.errors import UserError
from recs.ranking.catalogue import ItemCatalogue, ItemNames
from recs.ranking.protocols import RankingProtocol, sampler_of
from recs.ranking.ranks import TargetRanks, rank_among, unite
from recs.ranking.scoring import BLOCK_SCORES, NotANumber, Reasons, Recommender, Scorer
from recs.schema import TABLES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: Columns of table recommendations, and those beside them where items' names are known.
RECOMMENDATIONS = ("model", "user_id", "rank", "item_id", "score", "why", "fallback")
_NAMES = ("user", "item")
#: Columns of table ranks.
RANKS = (
    *("model", "protocol", "user_id", "item_id", "rank", "ties", "candidates"),
    *("history_length", "head", "repeat"),
)


class _Users(NamedTuple):
    """Users of a batch: int32[B] and, where they are asked for, their names."""

    ids: np.ndarray
    names: pa.Array | None

    def take(self, rows: np.ndarray) -> _Users:
        return _Users(self.ids[rows], None if self.names is None else self.names.take(rows))


def recommend(
    histories: DataFrame,
    model: Recommender,
    *,
    k: int,
    catalogue: ItemCatalogue,
    why: int = 3,
    fallback: Recommender | None = None,
    names: ItemNames | None = None,
) -> DataFrame:
    """Recommend each user the k best items that they have not seen.

    Parameters
    ----------
    histories
        user_id, history, values, seen; with ``names`` also user string.
    model
        Whose lists are made. Equal scores are in ascending order of item_id.
    k
        Length of the lists.
    catalogue
        Names the recommendable items.
    why
        History items named as reasons, at most.
    fallback
        Model whose list a user gets to whom ``model`` gives nothing, as to one without a history;
        without it such a user gets no row.
    names
        Names of the items; with them rows have the columns user and item too.

    Returns
    -------
    DataFrame
        :data:`RECOMMENDATIONS`, a row a user and rank.

    Raises
    ------
    ValueError
        If a column is missing or k < 1.
    UserError
        In the task, if the model's scores hold NaN or the model knows more items than the
        catalogue.
    """
    named = ["user"] if names else []
    _require(histories, ("user_id", "history", "values", "seen", *named))
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one recommendation")

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        allowed = catalogue.recommendable
        scorer = _open(model, allowed.size)
        backup = _open(fallback, allowed.size) if fallback else None
        for batch in batches:
            everyone = _Users(
                read_column(batch, "user_id"), batch.column("user") if names else None
            )
            history, seen = _read_histories(batch), read_lists(batch, "seen")
            for start, stop in blocks(scorer.sizes(history) + k, BLOCK_SCORES):
                users = everyone.take(np.arange(start, stop))
                read, hidden = history.rows(start, stop), seen.rows(start, stop)
                with _naming(model):
                    lists = scorer.top(read, hidden, allowed, k)
                lists = _without(lists, scorer.gives_nothing(read))
                reasons = scorer.reasons(read, lists, why)
                yield _recommendations(model.name, users, lists, reasons, names, fallback=False)
                lacking = np.diff(lists.offsets) == 0
                if fallback and backup and lacking.any():
                    users, read = users.take(np.flatnonzero(lacking)), read.select(lacking)
                    with _naming(fallback):
                        lists = backup.top(read, hidden.select(lacking), allowed, k)
                    reasons = backup.reasons(read, lists, why)
                    yield _recommendations(model.name, users, lists, reasons, names, fallback=True)

    schema = TABLES["recommendations"].ddl(*RECOMMENDATIONS, *(_NAMES if names else ()))
    return _select(histories, "seen", *named).mapInArrow(run, schema)


def score(histories: DataFrame, model: Recommender) -> DataFrame:
    """Score each user's candidates, and nothing else where the model can.

    Parameters
    ----------
    histories
        user_id, history, values, and candidates array<int>; any item may be a candidate.
    model
        Items that a sparse model gives no score have 0; what a dense model does not know, -inf.

    Returns
    -------
    DataFrame
        user_id int, candidates array<int>, scores array<float>, in the order of the candidates.
    """
    _require(histories, ("user_id", "history", "values", "candidates"))

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorer = model.open()
        for batch in batches:
            candidates = read_lists(batch, "candidates")
            scores = _pairs(model, scorer, _read_histories(batch), candidates)
            yield pa.RecordBatch.from_pydict(
                {
                    "user_id": read_column(batch, "user_id"),
                    "candidates": to_arrow(candidates.offsets, pa.array(candidates.items)),
                    "scores": to_arrow(candidates.offsets, pa.array(scores)),
                }
            )

    return _select(histories, "candidates").mapInArrow(
        run, "user_id int, candidates array<int>, scores array<float>"
    )


def rank(
    histories: DataFrame,
    models: Sequence[Recommender],
    protocols: Sequence[RankingProtocol],
    *,
    catalogue: ItemCatalogue,
) -> DataFrame:
    """Rank each user's targets by every model under every protocol, in one pass.

    A model scores all items once, and only if ``full`` is among the protocols; else it scores the
    candidates. (Between the two the last digits of a dense model's scores may differ.)

    Parameters
    ----------
    histories
        user_id, history, values, history_length int (of the user's own history, whatever models
        read of it), targets array<int> (without repeats) and repeats array<boolean> (whether the
        user has had the target before); for ``full`` seen; for sampled protocols interacted
        array<int>: all that the user has events of in any split, which is never drawn; for given
        lists candidates array<int>.
    models
        All of a user's targets are candidates for each other. Sampled and given candidates, and
        the targets ranked among them, need not be recommendable. Under ``full`` a target has a null
        rank if it is not recommendable, if it is among the user's seen items, or if it scores at
        the level where the model's lists end, as SLIM's do at 0: no list holds it. So has one of a
        user to whom a model gives nothing, or to whom no candidates are given.
    protocols
        What the targets are ranked among. Sampled candidates depend on the seed and the user only.
    catalogue
        Names the recommendable items and their training events.

    Returns
    -------
    DataFrame
        :data:`RANKS`, a row a model, protocol and target. ``rank`` is 1 + the candidates scored
        strictly above, ``ties`` the other candidates of the same score, ``head`` whether the target
        is of the most popular fifth of the recommendable items, ``repeat`` as in ``repeats``.

    Raises
    ------
    ValueError
        If a column is missing; in the task, if a model's scores hold NaN or it knows more items
        than the catalogue, or a target or candidate is not in the catalogue.
    """
    columns = ["history_length", "targets", "repeats"]
    columns += sorted({protocol.column for protocol in protocols})
    _require(histories, ["user_id", "history", "values", *columns])

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        num_items = catalogue.recommendable.size
        scorers = [(model, _open(model, num_items)) for model in models]
        for batch in batches:
            yield from _rank_batch(batch, scorers, protocols, catalogue)

    measured = histories.where("size(targets) > 0")
    return _select(measured, *columns).mapInArrow(run, TABLES["ranks"].ddl(*RANKS))


def _select(histories: DataFrame, *columns: str) -> DataFrame:
    """Keep what models read of users and the named columns."""
    vector = ["vector"] if "vector" in histories.columns else []
    return histories.select("user_id", "history", "values", *vector, *columns)


def _read_histories(batch: pa.RecordBatch) -> Lists:
    history = read_lists(batch, "history", "values")
    if "vector" in batch.schema.names:
        history = history._replace(vectors=read_vectors(batch, "vector"))
    return history


def _rank_batch(
    batch: pa.RecordBatch,
    scorers: Sequence[tuple[Recommender, Scorer]],
    protocols: Sequence[RankingProtocol],
    catalogue: ItemCatalogue,
) -> Iterator[pa.RecordBatch]:
    allowed, head = catalogue.recommendable, catalogue.head
    user_ids, lengths = read_column(batch, "user_id"), read_column(batch, "history_length")
    history, targets = _read_histories(batch), read_lists(batch, "targets", "repeats")
    _check_items(targets, "targets", allowed.size)
    full = any(protocol.is_full for protocol in protocols)
    seen = read_lists(batch, "seen") if full else None
    candidates = {
        protocol: _candidates(batch, user_ids, protocol, catalogue)
        for protocol in protocols
        if not protocol.is_full
    }
    united = {of: unite(lists, targets, allowed.size) for of, lists in candidates.items()}
    for model, scorer in scorers:
        sizes = scorer.sizes(history) if full else np.zeros(history.num_rows, np.int64)
        for start, stop in blocks(sizes, BLOCK_SCORES):
            read, wanted = history.rows(start, stop), targets.rows(start, stop)
            scores = scorer.scores(read) if full else None
            per_user, rankable = np.diff(wanted.offsets), ~scorer.gives_nothing(read)
            for protocol in protocols:
                if protocol.is_full:
                    assert scores is not None and seen is not None
                    with _naming(model):
                        ranks = scores.rank(seen.rows(start, stop), allowed, wanted)
                    ranks = ranks.only(np.repeat(rankable, per_user))
                else:
                    among = united[protocol].rows(start, stop)
                    if scores is None:
                        values = _pairs(model, scorer, read, among)
                    else:
                        values = _numbers(model, scores.gather(among), among)
                    # Where nothing else could be drawn, the target has no competitor and is first.
                    given = np.diff(candidates[protocol].offsets[start : stop + 1]) > 0
                    given |= protocol.num_negatives > 0
                    ranks = rank_among(among, values, wanted)
                    ranks = ranks.only(np.repeat(rankable & given, per_user))
                users, measured = user_ids[start:stop], lengths[start:stop]
                yield _ranked(model.name, protocol.name, users, measured, wanted, ranks, head)


def _candidates(
    batch: pa.RecordBatch,
    user_ids: np.ndarray,
    protocol: RankingProtocol,
    catalogue: ItemCatalogue,
) -> Lists:
    """Return the given candidates, or draw them."""
    lists = read_lists(batch, protocol.column)
    _check_items(lists, protocol.column, catalogue.recommendable.size)
    if not protocol.num_negatives:
        return lists
    sampler, owned = sampler_of(protocol, catalogue), (lists.offsets, lists.items)
    return Lists(*sampler.sample(user_ids, owned, protocol.num_negatives, seed=protocol.seed))


def _ranked(
    model: str,
    protocol: str,
    user_ids: np.ndarray,
    lengths: np.ndarray,
    targets: Lists,
    ranks: TargetRanks,
    head: np.ndarray,
) -> pa.RecordBatch:
    per_user, num_rows = np.diff(targets.offsets), targets.items.size
    assert targets.values is not None
    return pa.RecordBatch.from_pydict(
        {
            "model": _constant(model, num_rows),
            "protocol": _constant(protocol, num_rows),
            "user_id": np.repeat(user_ids, per_user),
            "item_id": targets.items,
            "rank": pa.array(ranks.ranks, mask=ranks.ranks == 0),
            "ties": ranks.ties,
            "candidates": ranks.candidates,
            "history_length": np.repeat(lengths, per_user),
            "head": head[targets.items],
            "repeat": targets.values > 0,
        }
    )


def _recommendations(
    model: str,
    users: _Users,
    lists: Lists,
    reasons: Reasons,
    names: ItemNames | None,
    *,
    fallback: bool,
) -> pa.RecordBatch:
    lengths = np.diff(lists.offsets)
    num_rows = lists.items.size
    places = np.arange(num_rows) - np.repeat(lists.offsets[:-1], lengths)
    given = reasons.items >= 0
    why = pa.StructArray.from_arrays(
        [pa.array(reasons.items[given]), pa.array(reasons.shares[given])], ["item_id", "share"]
    )
    owners = users.take(np.repeat(np.arange(lists.num_rows), lengths))
    columns = {
        "model": _constant(model, num_rows),
        "user_id": owners.ids,
        "rank": (places + 1).astype(np.int32),
        "item_id": lists.items,
        "score": lists.values,
        "why": to_arrow(offsets_of(given.sum(axis=1)), why),
        "fallback": np.full(num_rows, fallback),
    }
    if names is not None:
        columns |= {"user": owners.names, "item": names.of(lists.items)}
    return pa.RecordBatch.from_pydict(columns)


def _without(lists: Lists, emptied: np.ndarray) -> Lists:
    """Return the lists with those of the marked users (bool[B]) emptied."""
    lengths = np.diff(lists.offsets)
    kept = np.repeat(~emptied, lengths)
    assert lists.values is not None
    return Lists(offsets_of(np.where(emptied, 0, lengths)), lists.items[kept], lists.values[kept])


def _open(model: Recommender, num_items: int) -> Scorer:
    """Open a model whose items the catalogue has."""
    scorer = model.open()
    if scorer.num_items > num_items:
        raise UserError(
            f"model {model.name} scores {scorer.num_items} items, the catalogue has {num_items}; "
            "give the catalogue of the vocabulary that the model was trained with, or a later one"
        )
    return scorer


def _pairs(model: Recommender, scorer: Scorer, histories: Lists, candidates: Lists) -> np.ndarray:
    return _numbers(model, scorer.pairs(histories, candidates), candidates)


def _numbers(model: Recommender, scores: np.ndarray, of: Lists) -> np.ndarray:
    """Return the scores of lists, none of which is NaN."""
    unordered = np.isnan(scores)
    if unordered.any():
        with _naming(model):
            raise NotANumber(int(of.items[np.argmax(unordered)]))
    return scores


@contextmanager
def _naming(model: Recommender) -> Iterator[None]:
    """Say which model's scores cannot be ranked."""
    try:
        yield
    except NotANumber as error:
        raise UserError(
            f"model {model.name} scores item {error.item} with NaN; its training diverged or its "
            "input holds NaN: train it again"
        ) from error


def _check_items(lists: Lists, column: str, num_items: int) -> None:
    if lists.items.size and not 0 <= lists.items.min() <= lists.items.max() < num_items:
        raise UserError(
            f"column {column} has item ids from {lists.items.min()} to {lists.items.max()}, "
            f"outside the catalogue's 0 to {num_items - 1}"
        )


def _require(frame: DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(
            f"histories lack column {', '.join(missing)}; they have {', '.join(frame.columns)}"
        )


def _constant(text: str, num_rows: int) -> pa.Array:
    return pa.array([text], pa.string()).take(pa.array(np.zeros(num_rows, np.int32)))
