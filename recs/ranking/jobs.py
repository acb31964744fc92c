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
from typing import TYPE_CHECKING

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
from recs.ranking.catalogue import ItemCatalogue
from recs.ranking.kernels import gather, rank_among, rank_targets, top_k
from recs.ranking.protocols import RankingProtocol, sampler_of
from recs.ranking.scoring import (
    BLOCK_SCORES,
    Reasons,
    Recommender,
    Scorer,
    Scores,
    SparseScores,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

RECOMMENDATIONS = (
    "model string, user_id int, rank int, item_id int, score float, "
    "why array<struct<item_id:int,share:float>>, fallback boolean"
)
RANKS = (
    "model string, protocol string, user_id int, item_id int, rank bigint, ties bigint, "
    "candidates bigint, history_length int, head boolean"
)


def recommend(
    histories: DataFrame,
    model: Recommender,
    *,
    k: int,
    catalogue: ItemCatalogue,
    why: int = 3,
    fallback: Recommender | None = None,
) -> DataFrame:
    """Recommend each user the k best items that they have not seen.

    Parameters
    ----------
    histories
        user_id, history, values, seen.
    model
        Whose lists are made. Equal scores are in ascending order of item_id.
    k
        Length of the lists.
    catalogue
        Names the recommendable items.
    why
        History items named as reasons, at most.
    fallback
        Model whose list a user gets who has no history or to whom ``model`` gives nothing; without
        it such a user gets no row.

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
    _require(histories, ("user_id", "history", "values", "seen"))
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one recommendation")

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        allowed = catalogue.recommendable
        scorer = model.open()
        backup = fallback.open() if fallback else None
        for batch in batches:
            user_ids = read_column(batch, "user_id")
            history, seen = _read_histories(batch), read_lists(batch, "seen")
            for start, stop in blocks(scorer.sizes(history) + k, BLOCK_SCORES):
                users, read = user_ids[start:stop], history.rows(start, stop)
                hidden = seen.rows(start, stop)
                scores = _checked(scorer.scores(read), model, users, allowed.size)
                lists = top_k(scores, hidden, allowed, k)
                lists = _without(lists, np.diff(read.offsets) == 0) if fallback else lists
                reasons = scorer.reasons(read, lists, why)
                yield _recommendations(model.name, users, lists, reasons, False)
                lacking = np.diff(lists.offsets) == 0
                if fallback and backup and lacking.any():
                    users, read = users[lacking], read.select(lacking)
                    scores = _checked(backup.scores(read), fallback, users, allowed.size)
                    lists = top_k(scores, hidden.select(lacking), allowed, k)
                    reasons = backup.reasons(read, lists, why)
                    yield _recommendations(model.name, users, lists, reasons, True)

    return _select(histories, "seen").mapInArrow(run, RECOMMENDATIONS)


def score(histories: DataFrame, model: Recommender) -> DataFrame:
    """Score each user's candidates.

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
            user_ids = read_column(batch, "user_id")
            history = _read_histories(batch)
            candidates = read_lists(batch, "candidates")
            for start, stop in blocks(scorer.sizes(history), BLOCK_SCORES):
                users, wanted = user_ids[start:stop], candidates.rows(start, stop)
                scores = scorer.scores(history.rows(start, stop))
                scores = _checked(scores, model, users, scorer.num_items)
                yield pa.RecordBatch.from_pydict(
                    {
                        "user_id": users,
                        "candidates": to_arrow(wanted.offsets, pa.array(wanted.items)),
                        "scores": to_arrow(wanted.offsets, pa.array(gather(scores, wanted))),
                    }
                )

    return _select(histories, "candidates").mapInArrow(
        run, "user_id int, candidates array<int>, scores array<float>"
    )


def rank(
    histories: DataFrame,
    models: Sequence[Recommender],
    protocol: RankingProtocol,
    *,
    catalogue: ItemCatalogue,
) -> DataFrame:
    """Rank each user's targets under every model, in one pass.

    Parameters
    ----------
    histories
        user_id, history, values, seen, history_length int (of the user's own history, whatever
        models read of it), and targets array<int> (without repeats); for sampled protocols
        positives array<int>: all that the user has in any split, which are never drawn; for given
        lists candidates array<int>.
    models
        All of a user's targets are candidates for each other. Sampled and given candidates, and
        the targets ranked among them, need not be recommendable; under ``full`` a target that is
        not has a null rank. So has one of a user to whom a sparse model gives no score at all, or
        whose list of sampled or given candidates is empty.
    protocol
        What the targets are ranked among. Sampled candidates depend on its seed and the user only.
    catalogue
        Names the recommendable items and their training events.

    Returns
    -------
    DataFrame
        :data:`RANKS`, a row a model and target. ``rank`` is 1 + the candidates scored strictly
        above, ``ties`` the other candidates of the same score, ``head`` whether the target is of
        the most popular fifth of the recommendable items.
    """
    extra = protocol.column
    columns = ["seen", "history_length", "targets", *([extra] if extra else [])]
    _require(histories, ["user_id", "history", "values", *columns])

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorers = [(model, model.open()) for model in models]
        for batch in batches:
            yield from _rank_batch(batch, scorers, protocol, catalogue)

    measured = histories.where("size(targets) > 0")
    return _select(measured, *columns).mapInArrow(run, RANKS)


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
    protocol: RankingProtocol,
    catalogue: ItemCatalogue,
) -> Iterator[pa.RecordBatch]:
    allowed, head = catalogue.recommendable, catalogue.head
    user_ids, lengths = read_column(batch, "user_id"), read_column(batch, "history_length")
    history, seen = _read_histories(batch), read_lists(batch, "seen")
    targets = read_lists(batch, "targets")
    _check_items(targets, "targets", allowed.size)
    candidates = None
    if protocol.column:
        candidates = read_lists(batch, protocol.column)
        _check_items(candidates, protocol.column, allowed.size)
    if protocol.num_negatives and candidates is not None:
        sampler = sampler_of(protocol, catalogue)
        positives = candidates.offsets, candidates.items
        size, seed = protocol.num_negatives, protocol.seed
        candidates = Lists(*sampler.sample(user_ids, positives, size, seed=seed))
    for model, scorer in scorers:
        for start, stop in blocks(scorer.sizes(history), BLOCK_SCORES):
            users, read = user_ids[start:stop], history.rows(start, stop)
            wanted = targets.rows(start, stop)
            scores = _checked(scorer.scores(read), model, users, allowed.size)
            if candidates is None:
                ranks = rank_targets(scores, seen.rows(start, stop), allowed, wanted)
            else:
                ranks = rank_among(scores, candidates.rows(start, stop), wanted, allowed.size)
            per_user = np.diff(wanted.offsets)
            yield pa.RecordBatch.from_pydict(
                {
                    "model": _constant(model.name, wanted.items.size),
                    "protocol": _constant(protocol.name, wanted.items.size),
                    "user_id": np.repeat(users, per_user),
                    "item_id": wanted.items,
                    "rank": pa.array(ranks.ranks, mask=ranks.ranks == 0),
                    "ties": ranks.ties,
                    "candidates": ranks.candidates,
                    "history_length": np.repeat(lengths[start:stop], per_user),
                    "head": head[wanted.items],
                }
            )


def _recommendations(
    name: str, user_ids: np.ndarray, lists: Lists, reasons: Reasons, fallback: bool
) -> pa.RecordBatch:
    lengths = np.diff(lists.offsets)
    num_rows = lists.items.size
    places = np.arange(num_rows) - np.repeat(lists.offsets[:-1], lengths)
    given = reasons.items >= 0
    why = pa.StructArray.from_arrays(
        [pa.array(reasons.items[given]), pa.array(reasons.shares[given])], ["item_id", "share"]
    )
    return pa.RecordBatch.from_pydict(
        {
            "model": _constant(name, num_rows),
            "user_id": np.repeat(user_ids, lengths),
            "rank": (places + 1).astype(np.int32),
            "item_id": lists.items,
            "score": lists.values,
            "why": to_arrow(offsets_of(given.sum(axis=1)), why),
            "fallback": np.full(num_rows, fallback),
        }
    )


def _without(lists: Lists, emptied: np.ndarray) -> Lists:
    """Return the lists with those of the marked users (bool[B]) emptied."""
    lengths = np.diff(lists.offsets)
    kept = np.repeat(~emptied, lengths)
    assert lists.values is not None
    return Lists(offsets_of(np.where(emptied, 0, lengths)), lists.items[kept], lists.values[kept])


def _checked(scores: Scores, model: Recommender, user_ids: np.ndarray, num_items: int) -> Scores:
    """Return ``scores`` if they can be ranked."""
    values = scores.values
    if np.isnan(values).any():
        place = np.argmax(np.isnan(values).ravel())
        if isinstance(scores, SparseScores):
            user, item = (
                np.searchsorted(scores.offsets, place, side="right") - 1,
                scores.items[place],
            )
        else:
            user, item = place // values.shape[-1], place % values.shape[-1]
        raise UserError(
            f"model {model.name} scores item {item} for user {user_ids[user]} with NaN; "
            "its training diverged or its input holds NaN: train it again"
        )
    known = (
        scores.items.max(initial=-1) + 1 if isinstance(scores, SparseScores) else values.shape[-1]
    )
    if known > num_items:
        raise UserError(
            f"model {model.name} scores {known} items, the catalogue has {num_items}; "
            "give the catalogue of the vocabulary that the model was trained with, or a later one"
        )
    return scores


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
