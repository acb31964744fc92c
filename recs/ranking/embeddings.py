"""Embeddings as a model: a user's vector against every item's, exactly and in blocks of users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.arrays.files import item_vector, load_array, write_arrays
from recs.arrays.lists import Lists
from recs.errors import UserError
from recs.ranking.scoring import BLOCK_SCORES, DenseScores, Scorer

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
    path
        URI of a float32[N, d + 1] ``.npy`` file, as :func:`write_embeddings` writes it.
    """

    name: str
    path: str

    def open(self) -> EmbeddingScorer:
        return EmbeddingScorer(load_array(self.path))


@dataclass(frozen=True, eq=False)
class EmbeddingScorer(Scorer):
    """See :class:`EmbeddingModel`.

    ``vectors`` float32[N, d + 1]: the items', and as the last column their biases. A user's vector
    ends with a 1, so that one product gives scores with their biases.
    """

    vectors: np.ndarray

    @property
    def num_items(self) -> int:
        return len(self.vectors)

    def scores(self, histories: Lists) -> DenseScores:
        users = self._users(histories)
        scores = np.empty((len(users), self.num_items), np.float32)
        # Always as many users of a catalogue: the last digits of sums depend on the shapes, and no
        # user's scores may depend on who else is scored.
        at_once = max(1, min(_USERS_AT_ONCE, BLOCK_SCORES // self.num_items))
        whole = len(users) // at_once * at_once
        for first in range(0, whole, at_once):
            rows = slice(first, first + at_once)
            np.matmul(users[rows], self.vectors.T, out=scores[rows])
        if whole < len(users):
            block = np.ones((at_once, users.shape[1]), np.float32)
            block[: len(users) - whole] = users[whole:]
            scores[whole:] = (block @ self.vectors.T)[: len(users) - whole]
        return DenseScores(scores)

    def pairs(self, histories: Lists, candidates: Lists) -> np.ndarray:
        users = self._users(histories)
        return _products(users, candidates.offsets, candidates.items, self.vectors)

    def _users(self, histories: Lists) -> np.ndarray:
        """Return float32[B, d + 1]: the users' vectors, zeros where a user has none, and a 1."""
        if histories.vectors is None:
            raise ValueError("histories lack column vector: embeddings score by users' vectors")
        width = histories.vectors.shape[1]  # 0 where no user of the batch has one
        if width not in (0, self.vectors.shape[1] - 1):
            raise UserError(
                f"users' vectors have {width} numbers, items' {self.vectors.shape[1] - 1}: run the "
                "stage embed again"
            )
        users = np.zeros((histories.num_rows, self.vectors.shape[1]), np.float32)
        users[:, :width] = histories.vectors
        users[:, -1] = 1
        return users


@compiled_once()
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _products(users, offsets, items, vectors):
    scores = np.full(items.size, -np.inf, np.float32)
    for u in range(offsets.size - 1):
        for p in range(offsets[u], offsets[u + 1]):
            if items[p] < len(vectors):
                score = np.float32(0)
                for d in range(users.shape[1]):
                    score += users[u, d] * vectors[items[p], d]
                scores[p] = score
    return scores


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
        vectors = np.zeros((num_items, width + 1), np.float32)
        first = 0
        for chunk in table.column("vector").chunks:  # one by one: together they would be a copy
            rows = item_ids[first : first + len(chunk)]
            of_chunk = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            vectors[rows, :width] = of_chunk
            first += len(chunk)
        biases = item_vector(item_ids, table.column("bias").to_numpy(), num_items, "float32")
        vectors[:, width] = np.where(given, biases, -np.inf)
        return {"vectors": vectors}

    paths = write_arrays(embeddings.select("item_id", "vector", "bias"), folder, arrays)
    if not paths:
        raise UserError(f"model {name} has no item embeddings: run the stage embed first")
    return EmbeddingModel(name, paths["vectors"])
