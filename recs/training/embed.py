"""Embeddings by Spark: each worker loads the network once and reads users' newest histories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.arrays.lists import offsets_of, read_column, read_lists, right_aligned, to_arrow
from recs.schema import PADDING, SEQUENCE_ARRAYS, TABLES
from recs.training.plan import lengths_up_to

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from recs.nn.network import SequenceNetwork

#: Columns of the tables of the same names, as Spark reads a schema.
ITEM_EMBEDDINGS = TABLES["item_embeddings"].ddl("item_id", "vector", "bias")
USER_EMBEDDINGS = TABLES["user_embeddings"].ddl("user_id", "last", "vector")

#: Histories that a network reads at once, enough to keep it busy; and items of a batch of rows.
_HISTORIES, _ITEMS = 32, 10_000


def newest(sequences: DataFrame, upto: Iterable[str]) -> DataFrame:
    """Return the row of table ``sequences`` with each user's newest events up to these splits."""
    columns = ["last", "length", *SEQUENCE_ARRAYS]
    known = sequences.where(F.col("upto").isin(*upto))
    # Rows of one user that end with the same event hold the same events.
    best = F.max_by(F.struct(*columns), F.struct("last", "length")).alias("row")
    return known.groupBy("user_id").agg(best).select("user_id", "row.*")


def user_embeddings(histories: DataFrame, model: str) -> DataFrame:
    """Return :data:`USER_EMBEDDINGS` of the users.

    On one kind of processor a user's vector is the same to the last bit whoever else is embedded.

    Parameters
    ----------
    histories
        user_id, last, items, event_types, gaps. Events whose item or type came after the training
        are passed over; users with no other have no vector.
    model
        URI of the model's folder.
    """

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        network = _network(model)
        for batch in batches:
            users, last = read_column(batch, "user_id"), read_column(batch, "last")
            lists = [read_lists(batch, name) for name in SEQUENCE_ARRAYS]
            longest = int(np.diff(lists[0].offsets).max(initial=1))
            fills = (PADDING, PADDING, 0)
            arrays = [
                right_aligned(lists[n], longest, fills[n]) for n in range(len(SEQUENCE_ARRAYS))
            ]
            arrays = _known(arrays, network)
            some = (arrays[0] >= 0).any(1)
            if not some.any():
                continue
            users, last = users[some], last[some]
            vectors = _vectors(network, users, [values[some] for values in arrays])
            yield pa.RecordBatch.from_pydict(
                {
                    "user_id": users,
                    "last": last,
                    "vector": _lists(vectors),
                }
            )

    return histories.select("user_id", "last", *SEQUENCE_ARRAYS).mapInArrow(embed, USER_EMBEDDINGS)


def item_embeddings(spark: SparkSession, model: str) -> DataFrame:
    """Return :data:`ITEM_EMBEDDINGS` of a model, made in one task."""

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        import torch

        if not any([batch.num_rows for batch in batches]):
            return
        network = _network(model)
        with torch.no_grad():
            vectors, found = network.item_vectors().float().numpy(), network.item_biases()
        biases = np.zeros(len(vectors)) if found is None else found.detach().numpy()
        for first in range(0, len(vectors), _ITEMS):
            part = vectors[first : first + _ITEMS]
            yield pa.RecordBatch.from_pydict(
                {
                    "item_id": np.arange(first, first + len(part), dtype=np.int32),
                    "vector": _lists(part),
                    "bias": biases[first : first + _ITEMS].astype(np.float32),
                }
            )

    return spark.range(0, 1, 1, 1).mapInArrow(embed, ITEM_EMBEDDINGS)


def _vectors(network: SequenceNetwork, users: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
    """Return float32[B, d], what the network makes of each history.

    They are read in batches of one height, filled up with empty histories, and of a width that each
    history's own length says: the last digits of sums depend on the shapes.

    Parameters
    ----------
    network
        What reads.
    users : int32[B]
    arrays : int32[B, L]
        Items, event types and gaps of histories with an event each, padded on the left.
    """
    import torch

    from recs.nn.network import Histories

    longest = network.sizes.length
    widths = np.array(lengths_up_to(longest))
    lengths = np.minimum((arrays[0] >= 0).sum(1), longest)
    own = widths[np.searchsorted(widths, lengths)]
    read, found = [], []
    for width in np.unique(own).tolist():
        alike = np.flatnonzero(own == width)
        for first in range(0, len(alike), _HISTORIES):
            rows = alike[first : first + _HISTORIES]
            items, event_types, gaps = (
                _filled(values[rows], width, empty)
                for values, empty in zip(arrays, (PADDING, PADDING, 0), strict=True)
            )
            owners = _filled(users[rows, None], 1, PADDING)[:, 0]
            with torch.no_grad():
                queries = network.queries(Histories(owners, items, event_types, gaps))
            read.append(rows)
            found.append(queries[: len(rows)].float().numpy())
    return np.concatenate(found)[np.argsort(np.concatenate(read))]


def _filled(rows: np.ndarray, width: int, empty: int) -> Tensor:
    """Return int64[_HISTORIES, width]: the last columns of ``rows``, else ``empty``."""
    import torch

    kept = rows[:, -width:]
    filled = torch.full((_HISTORIES, width), empty)
    filled[: len(kept), width - kept.shape[1] :] = torch.from_numpy(kept)
    return filled


def _known(arrays: list[np.ndarray], network: SequenceNetwork) -> list[np.ndarray]:
    """Return int32[B, L] without the events that the network cannot read, padded on the left."""
    items, event_types, gaps = arrays
    new = items >= network.sizes.num_items
    if "event_types" in network.arrays:
        new |= event_types >= network.sizes.num_event_types
    if not new.any():
        return arrays
    known = (items >= 0) & ~new
    order = np.argsort(known, axis=1, kind="stable")
    return [
        np.take_along_axis(np.where(known, values, padding), order, 1)
        for values, padding in ((items, PADDING), (event_types, PADDING), (gaps, 0))
    ]


@lru_cache(maxsize=2)
def _network(model: str) -> SequenceNetwork:
    """Load a network once a worker. Spark runs a worker a core, so that each takes one."""
    import torch

    from recs.training.model_folder import load_model

    torch.set_num_threads(1)
    return load_model(model)[0]


def _lists(vectors: np.ndarray) -> pa.Array:
    import pyarrow as pa

    offsets = offsets_of(np.full(len(vectors), vectors.shape[1]))
    return to_arrow(offsets, pa.array(np.ascontiguousarray(vectors).ravel()))
