"""Embeddings by Spark: each worker loads the network once and reads users' newest histories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.data.sequences import PADDING
from recs.ranking.lists import offsets_of, read_column, read_lists, to_arrow
from recs.training.dataset import ARRAYS

if TYPE_CHECKING:
    import pyarrow as pa

    from recs.nn.network import SequenceNetwork

ITEM_EMBEDDINGS = "item_id int, vector array<float>, bias float"
USER_EMBEDDINGS = "user_id int, last int, vector array<float>"

#: Histories that a network reads at once, and items of a batch of rows.
_HISTORIES, _ITEMS = 256, 10_000


def newest(sequences: DataFrame, upto: Iterable[str]) -> DataFrame:
    """Return the row of table ``sequences`` with each user's newest events up to these splits."""
    columns = ["last", "length", *ARRAYS]
    known = sequences.where(F.col("upto").isin(*upto))
    # Rows of one user that end with the same event hold the same events.
    best = F.max_by(F.struct(*columns), F.struct("last", "length")).alias("row")
    return known.groupBy("user_id").agg(best).select("user_id", "row.*")


def user_embeddings(histories: DataFrame, model: str) -> DataFrame:
    """Return :data:`USER_EMBEDDINGS` of the users.

    Parameters
    ----------
    histories
        user_id, last, items, event_types, gaps; arrays of one length, padded on the left. Events
        whose item or type came after the training are passed over; users with no other have no
        vector.
    model
        URI of the model's folder.
    """

    def embed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        import torch

        from recs.nn.network import Histories

        network = _network(model)
        for batch in batches:
            users, last = read_column(batch, "user_id"), read_column(batch, "last")
            arrays = [read_lists(batch, name).items.reshape(len(users), -1) for name in ARRAYS]
            arrays = _known(arrays, network)
            some = (arrays[0] >= 0).any(1)
            users, last = users[some], last[some]
            arrays = [values[some, -network.sizes.length :] for values in arrays]
            # By length, so that short histories are read without their padding.
            lengths = (arrays[0] >= 0).sum(1)
            order = np.argsort(lengths, kind="stable")
            vectors: np.ndarray | None = None
            for first in range(0, len(users), _HISTORIES):
                rows = order[first : first + _HISTORIES]
                width = max(1, int(lengths[rows].max()))
                parts = (np.ascontiguousarray(a[rows, -width:], np.int64) for a in arrays)
                read = Histories(
                    torch.from_numpy(users[rows].astype(np.int64)), *map(torch.from_numpy, parts)
                )
                with torch.no_grad():
                    queries = network.queries(read).float().numpy()
                if vectors is None:
                    vectors = np.empty((len(users), queries.shape[1]), np.float32)
                vectors[rows] = queries
            if vectors is not None:
                yield pa.RecordBatch.from_pydict(
                    {
                        "user_id": users,
                        "last": last,
                        "vector": _lists(vectors),
                    }
                )

    return histories.select("user_id", "last", *ARRAYS).mapInArrow(embed, USER_EMBEDDINGS)


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
