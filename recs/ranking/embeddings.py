"""Embeddings as a model: a user's vector against every item's, exactly and in blocks of users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recs.arrays.files import item_vector, load_array, write_arrays
from recs.arrays.lists import Lists
from recs.errors import UserError
from recs.ranking.scoring import BLOCK_SCORES, DenseScores, Reasons, no_reasons

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

#: Users of a product at the most.
_USERS_AT_ONCE = 64


@dataclass(frozen=True)
class EmbeddingModel:
    """Scores item i for user u by ⟨vector of u, vector of i⟩ + bias of i.

    The histories that it reads carry the users' vectors (:attr:`recs.arrays.lists.Lists.vectors`).

    Attributes
    ----------
    name
        Name of the model in every table.
    vectors_path, biases_path
        URIs of ``.npy`` files: float32[N, d] and float32[N], as :func:`write_embeddings` writes
        them.
    """

    name: str
    vectors_path: str
    biases_path: str

    def open(self) -> EmbeddingScorer:
        return EmbeddingScorer(load_array(self.vectors_path), load_array(self.biases_path))


@dataclass(frozen=True, eq=False)
class EmbeddingScorer:
    """See :class:`EmbeddingModel`; ``vectors`` float32[N, d], ``biases`` float32[N]."""

    vectors: np.ndarray
    biases: np.ndarray

    @property
    def num_items(self) -> int:
        return len(self.biases)

    def sizes(self, histories: Lists) -> np.ndarray:
        return np.full(histories.num_rows, self.num_items)

    def scores(self, histories: Lists) -> DenseScores:
        if histories.vectors is None:
            raise ValueError("histories lack column vector: embeddings score by users' vectors")
        vectors = histories.vectors
        if not vectors.size:  # no user of the batch has one, so that their width is not known
            return DenseScores(np.tile(self.biases, (histories.num_rows, 1)))
        scores = np.empty((len(vectors), self.num_items), np.float32)
        # Always as many users of a catalogue: the last digits of sums depend on the shapes, and no
        # user's scores may depend on who else is scored.
        at_once = max(1, min(_USERS_AT_ONCE, BLOCK_SCORES // self.num_items))
        block = np.zeros((at_once, vectors.shape[1]), np.float32)
        for first in range(0, len(vectors), at_once):
            rows = vectors[first : first + at_once]
            block[: len(rows)] = rows
            scores[first : first + len(rows)] = (block @ self.vectors.T)[: len(rows)]
        scores += self.biases
        return DenseScores(scores)

    def reasons(self, histories: Lists, recommended: Lists, count: int) -> Reasons:
        return no_reasons(recommended.items.size, count)


def write_embeddings(
    embeddings: DataFrame, folder: str, num_items: int, name: str
) -> EmbeddingModel:
    """Write ``embeddings`` (item_id, vector, bias) under ``folder``, in one Spark task.

    Items without a row, which came after the training, are never recommended: their bias is -inf.

    Raises
    ------
    UserError
        If there are none.
    """

    def arrays(table: pa.Table) -> dict[str, np.ndarray]:
        item_ids = table.column("item_id").to_numpy()
        given = item_vector(item_ids, np.ones(len(item_ids)), num_items, "bool")
        width = len(table.column("vector")[0])
        vectors = np.zeros((num_items, width), np.float32)
        first = 0
        for chunk in table.column("vector").chunks:  # one by one: together they would be a copy
            rows = item_ids[first : first + len(chunk)]
            vectors[rows] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            first += len(chunk)
        biases = np.full(num_items, -np.inf, np.float32)
        biases[given] = item_vector(
            item_ids, table.column("bias").to_numpy(), num_items, "float32"
        )[given]
        return {"vectors": vectors, "biases": biases}

    paths = write_arrays(embeddings.select("item_id", "vector", "bias"), folder, arrays)
    if not paths:
        raise UserError(f"model {name} has no item embeddings: run the stage embed first")
    return EmbeddingModel(name, paths["vectors"], paths["biases"])
