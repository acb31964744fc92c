"""Networks of self-attention: SASRec and BERT4Rec.

Shapes: B histories, L places, D the width, N items.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recs.nn.layers import Encoder, EncoderSettings, EventLookup
from recs.nn.network import PADDING, Examples, Histories, SequenceNetwork, Sizes


class SASRec(SequenceNetwork):
    """Causal self-attention over the history (Kang and McAuley 2018).

    The score of item i after the events up to t is ⟨F_t, e_i⟩, F_t the last block's state of place
    t and e_i the vector that also stands for i in the input. The paper trains it by BCE with one
    negative a place, Σ_t −ln σ(r⁺) − ln(1 − σ(r⁻)); full and sampled cross-entropy serve better
    (Klenitskiy and Vasilev 2023). :mod:`recs.nn.losses` has all of them.

    Departs from the paper: with ``norm: pre`` keys and values are normalised as queries are;
    attention weights are dropped only if ``attention_dropout`` says so; ``norm``, ``positions``,
    ``event_types`` and ``widening`` are choices.
    """

    Settings = EncoderSettings

    def __init__(self, sizes: Sizes, settings: EncoderSettings) -> None:
        super().__init__(sizes, settings)
        self.events = EventLookup(sizes, settings, scale=math.sqrt(settings.dim))
        self.encoder = Encoder(sizes.length, settings, nn.ReLU(), causal=True)

    def states(self, histories: Histories) -> Tensor:
        """Return float[B, L, D]."""
        return self.encoder(self.events(histories), histories.present)

    def item_vectors(self) -> Tensor:
        """Return float[N, D]."""
        return self.events.items.weight


class BERT4RecSettings(EncoderSettings):
    """Settings of :class:`BERT4Rec`.

    Attributes
    ----------
    masked
        Share ρ of events that are hidden.
    last_only
        Probability with which a history hides its last event alone, as at inference.
    """

    widening: Annotated[int, Field(gt=0)] = 4
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.2
    last_only: Annotated[float, Field(ge=0, le=1)] = 0.1


class BERT4Rec(SequenceNetwork):
    """Bidirectional self-attention that restores hidden events (Sun et al. 2019).

    A share ρ of the events is replaced by [mask], a vector of its own. With h the last block's
    state of a hidden place, P(v) = softmax(GELU(h W^P + b^P) Eᵀ + b^O), E the vectors that also
    stand for items in the input; the objective is the mean of −ln P over hidden places. What comes
    after a history is the event that [mask] at its end hides; where that makes it longer than
    ``sizes.length``, the oldest event is dropped.

    Departs from the paper: which events are hidden is drawn afresh at each visit, not ten times
    in advance, and a history hides its last event alone with probability ``last_only``; an event's
    type is hidden with it; events that may not be asked for may be hidden, but are not targets;
    LayerNorm comes before the sub-layers unless ``norm: post``.
    """

    Settings = BERT4RecSettings

    def __init__(self, sizes: Sizes, settings: BERT4RecSettings) -> None:
        super().__init__(sizes, settings)
        dim = settings.dim
        self.masked, self.last_only = settings.masked, settings.last_only
        self.events = EventLookup(sizes, settings, scale=math.sqrt(dim))
        self.mask_vector = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.mask_vector, std=0.02 * math.sqrt(dim))
        self.encoder = Encoder(sizes.length, settings, nn.GELU(), causal=False)
        self.head = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.biases = sizes.tables.zeros(sizes.num_items)

    def states(self, histories: Histories) -> Tensor:
        """Return float[B, L, D]; an item id of ``sizes.num_items`` is a hidden event."""
        hidden_BL = histories.items == self.sizes.num_items
        items_BL = histories.items.masked_fill(hidden_BL, PADDING)
        x_BLD = self.events(histories._replace(items=items_BL))
        x_BLD = torch.where(hidden_BL.unsqueeze(-1), self.mask_vector.to(x_BLD.dtype), x_BLD)
        return F.gelu(self.head(self.encoder(x_BLD, histories.present)))

    def item_vectors(self) -> Tensor:
        """Return float[N, D]."""
        return self.events.items.weight

    def item_biases(self) -> Tensor:
        """Return float[N]."""
        return self.biases

    def examples(
        self, histories: Histories, wanted: Tensor, generator: torch.Generator
    ) -> Examples:
        """Return the histories with events hidden, at least one of them wanted, as targets.

        Of histories longer than ``sizes.length`` the newest events are kept.
        """
        length = self.sizes.length
        histories = _newest(histories, length)
        wanted_BL = wanted[:, -histories.items.shape[1] :] & histories.present
        # All is drawn on the CPU, so that it does not depend on the device.
        chances_BL = torch.rand(wanted_BL.shape, generator=generator).to(wanted_BL.device)
        alone_B = torch.rand(len(wanted_BL), generator=generator).to(wanted_BL.device)

        hidden_BL = histories.present & (chances_BL < self.masked)
        first_B = chances_BL.masked_fill(~wanted_BL, 2.0).argmin(1)
        forced_BL = F.one_hot(first_B, wanted_BL.shape[1]).bool() & wanted_BL
        lacking_B = ~(hidden_BL & wanted_BL).any(1)
        hidden_BL = hidden_BL | (forced_BL & lacking_B[:, None])

        last_BL = torch.zeros_like(hidden_BL)
        last_BL[:, -1] = wanted_BL[:, -1]
        alone_B = (alone_B < self.last_only) & last_BL[:, -1]
        hidden_BL = torch.where(alone_B[:, None], last_BL, hidden_BL)

        targets = torch.where(hidden_BL & wanted_BL, histories.items, PADDING)
        return Examples(self._hide(histories, hidden_BL), targets)

    def queries(self, histories: Histories) -> Tensor:
        """Return float[B, D]: the states of [mask] after each history."""
        kept = _newest(histories, self.sizes.length - 1)
        empty = kept.items.new_zeros(len(kept.items), 1)
        extended = Histories(kept.users, *(torch.cat([part, empty], 1) for part in kept[1:]))
        hidden_BL = torch.zeros_like(extended.items, dtype=torch.bool)
        hidden_BL[:, -1] = True
        return self.states(self._hide(extended, hidden_BL))[:, -1]

    def _hide(self, histories: Histories, hidden_BL: Tensor) -> Histories:
        return histories._replace(
            items=histories.items.masked_fill(hidden_BL, self.sizes.num_items),
            event_types=histories.event_types.masked_fill(hidden_BL, PADDING),
        )


def _newest(histories: Histories, length: int) -> Histories:
    """Return histories with at most the ``length`` newest events."""
    first = max(0, histories.items.shape[1] - length)
    return Histories(histories.users, *(part[:, first:] for part in histories[1:]))
