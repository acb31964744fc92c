"""What a sequential network is: a query for every place of a history, and a vector for every item.

All of them score an item by ⟨query, vector of the item⟩ + bias of the item, so that one set of
losses trains them, and what they have learned is written as embeddings. Shapes: B histories, L
places, d the width, N items. Histories are padded on the left.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from recs.nn.samplers import random_bits
from recs.nn.tables import WHOLE, Tables
from recs.schema import PADDING
from recs.settings import Strict


class Histories(NamedTuple):
    """Histories as the feed gives them.

    Attributes
    ----------
    users : int64[B]
    items : int64[B, L]
        Item ids; :data:`~recs.schema.PADDING` on the left.
    event_types : int64[B, L]
        Numbers of event types; :data:`PADDING` where ``items`` is.
    gaps : int64[B, L]
        Seconds since the event before; 0 for the first and in the padding.
    """

    users: Tensor
    items: Tensor
    event_types: Tensor
    gaps: Tensor

    @property
    def present(self) -> Tensor:
        """bool[B, L]: where there is an event."""
        return self.items >= 0


class Sizes(NamedTuple):
    """What a network is built for.

    Attributes
    ----------
    num_users, num_items, num_event_types
        Of the data.
    length
        Longest history that is read.
    tables
        How tables of items and users are held.
    """

    num_users: int
    num_items: int
    num_event_types: int
    length: int
    tables: Tables = WHOLE

    def of_data(self) -> dict[str, int]:
        """Return what does not depend on the processes."""
        return {name: value for name, value in self._asdict().items() if name != "tables"}


class Examples(NamedTuple):
    """What is learned of a batch: at each place of ``inputs`` one event that is asked for.

    Attributes
    ----------
    inputs
        What the network reads.
    asked : int64[B, L]
        Column of the batch's histories that the event is in; :data:`PADDING` where none is asked.
    """

    inputs: Histories
    asked: Tensor

    def take(self, values: Tensor) -> Tensor:
        """Return [B, L]: of the asked events what ``values`` [B, T] says; else -1, or False."""
        taken = values.gather(1, self.asked.clamp(min=0))
        return taken.masked_fill(self.asked == PADDING, PADDING if taken.dtype != torch.bool else 0)


class Chances(NamedTuple):
    """Random numbers of [0, 1) for a batch, the same on every device and for any number of ranks.

    Attributes
    ----------
    events : float[B, T]
        One for each event.
    histories : float[B]
        One for each history.
    """

    events: Tensor
    histories: Tensor

    @classmethod
    def of(cls, seed: int, step: int, places: Tensor, width: int) -> Chances:
        """Return those of a step's histories.

        Parameters
        ----------
        seed, step
            Any int64.
        places : int64[B]
            Of the histories in the batch of all ranks.
        width
            T; events are numbered from the newest, so that padding moves none.
        """
        # Below zero, where no sampler of negatives draws.
        draws = torch.arange(-1 - width, 0, device=places.device)
        bits = random_bits(seed, step, places, draws)
        values = ((bits >> 40) & (2**24 - 1)).to(torch.float32) * 2.0**-24
        return cls(values[:, :-1], values[:, -1])


class Settings(Strict):
    """Settings of a network; each has its own class of them."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """Fields of :class:`Histories` that the network reads, each an array a history."""
        return ("items",)


class SequenceNetwork(nn.Module):
    """Base of all sequential networks.

    Parameters
    ----------
    sizes
        Of the data.
    settings
        An instance of the class's ``Settings``.
    """

    Settings: ClassVar[type[Settings]]

    def __init__(self, sizes: Sizes, settings: Any) -> None:
        super().__init__()
        self.sizes = sizes
        self.arrays: tuple[str, ...] = settings.arrays

    def states(self, histories: Histories) -> Tensor:
        """Return float[B, L, d]: at each place the query for what is asked of it.

        Of places in the padding nothing is promised.
        """
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """Return float[N, d]; where ``sizes.tables`` are sharded, this process's rows of it."""
        raise NotImplementedError

    def item_biases(self) -> Tensor | None:
        """Return float[N], or None where the score is the product alone; rows as of vectors."""
        return None

    def examples(self, histories: Histories, wanted: Tensor, chances: Chances) -> Examples:
        """Return what is learned of a batch: by default at each place the item after it.

        Parameters
        ----------
        histories
            The batch.
        wanted : bool[B, L]
            Events that may be asked for; False in the padding.
        chances
            Of what is drawn at random.
        """
        inputs = Histories(histories.users, *(part[:, :-1] for part in histories[1:]))
        after_L = torch.arange(1, wanted.shape[1], device=wanted.device)
        return Examples(inputs, torch.where(wanted[:, 1:] & inputs.present, after_L, PADDING))

    def queries(self, histories: Histories) -> Tensor:
        """Return float[B, d]: the query for what comes after each history (length > 0)."""
        return self.states(histories)[:, -1]
