"""Recurrent networks: GRU4Rec, an LSTM with the mean of its inputs, and a plain RNN.

Shapes: B histories, L places, D the width, N items.

All share an item's vector between input and output, score by ⟨query, e_i⟩ + b_i and start from a
state of zeros at the first event, however much padding stands before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from recs.nn.layers import Dropout, EventLookup, EventSettings
from recs.nn.network import Histories, SequenceNetwork, Sizes


class RecurrentSettings(EventSettings):
    """Settings of recurrent networks; ``layers`` are stacked, all as wide as the vectors."""

    layers: PositiveInt = 1


class _Recurrent(SequenceNetwork):
    """A recurrent network whose queries are its outputs."""

    Settings = RecurrentSettings
    cell: ClassVar[Callable[..., nn.RNNBase]]

    def __init__(self, sizes: Sizes, settings: RecurrentSettings) -> None:
        super().__init__(sizes, settings)
        self.scale = math.sqrt(settings.dim)
        self.events = EventLookup(sizes, settings)
        between = settings.dropout if settings.layers > 1 else 0.0
        self.recurrence = self.cell(
            settings.dim, settings.dim, settings.layers, batch_first=True, dropout=between
        )
        self.dropout = Dropout(settings.dropout)
        self.biases = sizes.tables.zeros(sizes.num_items)

    def states(self, histories: Histories) -> Tensor:
        """Return float[B, L, D]."""
        items_BL = histories.items
        # A state drifts over padding. Turned round, the padding comes after all events, where it
        # reaches no state of an event, and the kernels need no mask.
        padding_B1 = (~histories.present).sum(1, keepdim=True)
        places_L = torch.arange(items_BL.shape[1], device=items_BL.device)
        there_BL = (places_L + padding_B1) % len(places_L)
        back_BL1 = ((places_L - padding_B1) % len(places_L)).unsqueeze(-1)
        turned = histories._replace(
            items=items_BL.gather(1, there_BL),
            event_types=histories.event_types.gather(1, there_BL),
        )
        y_BLD = self._outputs(self.events(turned))
        return y_BLD.gather(1, back_BL1.expand_as(y_BLD))

    def _outputs(self, x_BLD: Tensor) -> Tensor:
        """Return the queries of events that start at the left."""
        return self.dropout(self.recurrence(self.dropout(x_BLD * self.scale))[0])

    def item_vectors(self) -> Tensor:
        """Return float[N, D]."""
        return self.events.items.weight

    def item_biases(self) -> Tensor:
        """Return float[N]."""
        return self.biases


class GRU4Rec(_Recurrent):
    """A gated recurrent unit over the history (Hidasi et al. 2016).

    z_t = σ(x_t W_z + h_{t−1} U_z + b), r_t = σ(x_t W_r + h_{t−1} U_r + b),
    ĥ_t = tanh(x_t W + r_t ⊙ (h_{t−1} U) + b), h_t = (1 − z_t) ĥ_t + z_t h_{t−1}; the score of item
    i is ⟨h_t, e_i⟩ + b_i. With the losses ``bpr_max`` or ``top1_max`` and additional negatives it
    is GRU4Rec+ (Hidasi and Karatzoglou 2018).

    Departs from the papers: gradients go back over whole histories, not over session-parallel
    mini-batches of one event; vectors of items are shared between input and output (the second
    paper's constrained embedding); torch's GRU resets h after its matrix, not before it.
    """

    cell = nn.GRU


class RNNRec(_Recurrent):
    """A plain recurrent network: h_t = tanh(x_t W_x + h_{t−1} W_h + b), score ⟨h_t, e_i⟩ + b_i."""

    cell = nn.RNN


class LSTMRec(_Recurrent):
    """An LSTM (Hochreiter and Schmidhuber 1997) beside the mean of what it reads.

    The user's vector after t events is a·h_t + b·(1/t) Σ_{s≤t} x_s, h_t the LSTM's output, x_s the
    vectors of the events up to t, a and b learned numbers that start at 1; the score of item i is
    ⟨it, e_i⟩ + b_i.
    """

    cell = nn.LSTM

    def __init__(self, sizes: Sizes, settings: RecurrentSettings) -> None:
        super().__init__(sizes, settings)
        self.shares = nn.Parameter(torch.ones(2))

    def _outputs(self, x_BLD: Tensor) -> Tensor:
        counts_L1 = torch.arange(1, x_BLD.shape[1] + 1, device=x_BLD.device).unsqueeze(-1)
        means_BLD = x_BLD.cumsum(1) / counts_L1
        return self.shares[0] * super()._outputs(x_BLD) + self.shares[1] * means_BLD
