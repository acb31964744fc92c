"""Networks of self-attention: SASRec and BERT4Rec.

Shapes: B histories, L places, D the width, N items.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recs.nn.layers import Encoder, EncoderSettings, EventLookup
from recs.nn.network import Chances, Examples, Histories, SequenceNetwork, Sizes
from recs.schema import PADDING


class SASRec(SequenceNetwork):
    """Causal self-attention over the history (Kang and McAuley 2018).

    The score of item i after the events up to t is ⟨F_t, e_i⟩, F_t the last block's state of place
    t and e_i the vector that also stands for i in the input. The paper trains it by BCE with one
    negative a place, Σ_t −ln σ(r⁺) − ln(1 − σ(r⁻)); full and sampled cross-entropy serve better
    (Klenitskiy and Vasilev 2023). :mod:`recs.nn.losses` has all of them.

    Departs from the paper: positions count from the oldest event, not from the end of a padded
    history; with ``norm: pre`` keys and values are normalised as queries are; attention weights are
    dropped only if ``attention_dropout`` says so; ``norm``, ``positions``, ``event_types`` and
    ``widening`` are choices.
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
    pooling
        ``mask``: events are hidden, and the state of a hidden place asks for its event. ``mean``:
        none is; the mean of all states asks for what comes after them (with the loss
        ``relevance``).
    masked
        Share ρ of events that are hidden.
    last_only
        Probability with which a history hides its last event alone, as at inference.
    """

    widening: Annotated[int, Field(gt=0)] = 4
    pooling: Literal["mask", "mean"] = "mask"
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.2
    last_only: Annotated[float, Field(ge=0, le=1)] = 0.1


class BERT4Rec(SequenceNetwork):
    """Bidirectional self-attention that restores hidden events (Sun et al. 2019).

    A share ρ of the events is replaced by [mask], a vector of its own. With h the last block's
    state of a hidden place, P(v) = softmax(GELU(h W^P + b^P) Eᵀ + b^O), E the vectors that also
    stand for items in the input; the objective is the mean of −ln P over hidden places. What comes
    after a history is the event that [mask] at its end hides; where that makes it longer than
    ``sizes.length``, the oldest event is dropped. With ``pooling: mean`` a history is cut at an
    event drawn at random, and the mean of the states before it stands for h.

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
        self.pools = settings.pooling == "mean"
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
        h_BLD = self.encoder(x_BLD, histories.present)
        if self.pools:
            h_BLD = _mean(h_BLD, histories.present).expand_as(h_BLD)
        return F.gelu(self.head(h_BLD))

    def item_vectors(self) -> Tensor:
        """Return float[N, D]."""
        return self.events.items.weight

    def item_biases(self) -> Tensor:
        """Return float[N]."""
        return self.biases

    def examples(self, histories: Histories, wanted: Tensor, chances: Chances) -> Examples:
        """Return the histories with events hidden, at least one of them wanted, which are asked.

        Of histories longer than ``sizes.length`` the newest events are kept.
        """
        if self.pools:
            return _cut(histories, wanted, chances)
        length = self.sizes.length
        dropped = max(0, wanted.shape[1] - length)
        histories = _newest(histories, length)
        wanted_BL = wanted[:, dropped:] & histories.present
        chances_BL = chances.events[:, dropped:]
        hidden_BL = histories.present & (chances_BL < self.masked)
        first_B = chances_BL.masked_fill(~wanted_BL, 2.0).argmin(1)
        forced_BL = F.one_hot(first_B, wanted_BL.shape[1]).bool() & wanted_BL
        lacking_B = ~(hidden_BL & wanted_BL).any(1)
        hidden_BL = hidden_BL | (forced_BL & lacking_B[:, None])

        last_BL = torch.zeros_like(hidden_BL)
        last_BL[:, -1] = wanted_BL[:, -1]
        alone_B = (chances.histories < self.last_only) & last_BL[:, -1]
        hidden_BL = torch.where(alone_B[:, None], last_BL, hidden_BL)

        columns_L = torch.arange(dropped, wanted.shape[1], device=wanted.device)
        asked_BL = torch.where(hidden_BL & wanted_BL, columns_L, PADDING)
        return Examples(self._hide(histories, hidden_BL), asked_BL)

    def queries(self, histories: Histories) -> Tensor:
        """Return float[B, D]: the states of [mask] after each history, or of all its events."""
        if self.pools:
            return super().queries(histories)
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


def _mean(h_BLD: Tensor, present_BL: Tensor) -> Tensor:
    """Return float[B, 1, D]: the mean over places of events; zeros where there are none."""
    weights_BL1 = present_BL.unsqueeze(-1).to(h_BLD.dtype)
    total_B1D = (h_BLD * weights_BL1).sum(1, keepdim=True)
    return total_B1D / weights_BL1.sum(1, keepdim=True).clamp(min=1)


def _cut(histories: Histories, wanted: Tensor, chances: Chances) -> Examples:
    """Return what comes before one wanted event of each history, which its last place asks for."""
    wanted_BL = wanted & histories.present
    wanted_BL[:, 1:] &= histories.present[:, :-1]  # something has to come before it
    wanted_BL[:, 0] = False
    at_B1 = chances.events.masked_fill(~wanted_BL, 2.0).argmin(1, keepdim=True)
    places_L = torch.arange(wanted.shape[1] - 1, device=wanted.device)
    from_BL = places_L + at_B1 - len(places_L)
    before_BL = from_BL >= 0

    def moved(part_BT: Tensor, empty: int) -> Tensor:
        return part_BT.gather(1, from_BL.clamp(min=0)).masked_fill(~before_BL, empty)

    users, items, event_types, gaps = histories
    inputs = Histories(users, moved(items, PADDING), moved(event_types, PADDING), moved(gaps, 0))
    asked_BL = torch.full_like(from_BL, PADDING)
    asked_BL[:, -1:] = torch.where(wanted_BL.any(1, keepdim=True), at_B1, PADDING)
    return Examples(inputs, asked_BL)


def _newest(histories: Histories, length: int) -> Histories:
    """Return histories with at most the ``length`` newest events."""
    first = max(0, histories.items.shape[1] - length)
    return Histories(histories.users, *(part[:, first:] for part in histories[1:]))
