"""Models by name, and the settings of their fit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recs.config.values import Different, NonNegative, PositiveInt, one_of
from recs.nn.models import MODELS
from recs.settings import Strict
from recs.training.settings import Network
from recs.training.space import Tune

#: Networks, and all models: those solved in Spark come first.
NETWORKS: tuple[str, ...] = tuple(MODELS)
MODEL_NAMES: tuple[str, ...] = ("popularity", "slim", *NETWORKS)

ModelName = Annotated[str, one_of(MODEL_NAMES, "model")]
NetworkName = Annotated[str, one_of(NETWORKS, "network")]


class Slim(Strict):
    """SLIM's objective, how exactly it is solved, and in which memory.

    Attributes
    ----------
    l1, l2
        λ and β of the objective in :mod:`recs.slim.solver`, without a 1/n.
    values
        Whether an item is in a history (``binary``), or the summed weights of its events.
    tolerance
        Largest KKT residual of an item, relative to its largest co-occurrence.
    max_iterations
        Passes over an item's working set after which it has not converged.
    memory_budget_mb
        MiB that the Python workers of a host may hold together, beside their interpreters and the
        weights of a warm start: the events by item and by user, 8 (U + 3 N) bytes and 8 a distinct
        event (16 with weights), about 28 U + 44 N bytes a worker, and with the rest a table of
        the co-occurrences of the most popular items, which makes it fast.
    max_neighbours
        K: only the K most similar of the items that could have a weight (G_ij > l1) may have one.
        Events that do not fit the memory of a host are solved too, if K is given.
    similarity
        Of two items: G_ij / √(G_ii G_jj), or G_ij. Of equal ones the lower id is the nearer.
    warm_start
        Start from the weights of the last run.
    warm_tolerance
        Items whose last weights solve today's problem up to this residual keep them as they are;
        only the others are solved again, to ``tolerance``. After 3% more events in all corners of
        a catalogue, 0.03 keeps some 40% of the items and 0.001 hardly any.
    """

    l1: NonNegative = 5.0
    l2: NonNegative = 5.0
    values: Literal["binary", "weight"] = "binary"
    tolerance: Annotated[float, Field(gt=0)] = 1e-6
    max_iterations: PositiveInt = 10_000
    memory_budget_mb: PositiveInt = 1024
    max_neighbours: PositiveInt | None = None
    similarity: Literal["cosine", "cooccurrence"] = "cosine"
    warm_start: bool = False
    warm_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.03


class Popularity(Strict):
    """Popularity: positive events of an item, of all times or the last ``days``."""

    days: PositiveInt | None = None


class TuneSlim(Strict):
    """The grid that ``recs tune slim`` searches on validation events."""

    l1: Annotated[list[NonNegative], Different] = Field(default=[1.0, 2.0, 5.0, 10.0], min_length=1)
    l2: Annotated[list[NonNegative], Different] = Field(
        default=[1.0, 10.0, 100.0, 500.0], min_length=1
    )
    protocol: Literal["full", "uniform100", "popularity100"] = "full"
    metric: Literal["ndcg", "hr", "mrr"] = "ndcg"
    k: PositiveInt = 10


class TunedNetwork(Network):
    """A network, and the space of its settings that ``recs tune`` searches."""

    tune: Tune | None = None

    @property
    def network(self) -> Network:
        """The network alone: what is trained does not depend on what is searched."""
        return Network(model=self.model, loss=self.loss, training=self.training)
