"""Convolutions over the last events: Caser.

Shapes: B histories, L places, D the width, K events of a window, N items.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from recs.nn.layers import Dropout, EventLookup, EventSettings, Lookup, UserLookup
from recs.nn.network import Histories, SequenceNetwork, Sizes


class CaserSettings(EventSettings):
    """Settings of :class:`Caser`.

    Attributes
    ----------
    order
        Events of a window.
    horizontal
        Horizontal filters of each height, 1 to ``order``.
    vertical
        Vertical filters.
    """

    order: PositiveInt = 5
    horizontal: PositiveInt = 16
    vertical: PositiveInt = 4


class Caser(SequenceNetwork):
    """Convolutions over the last events, as over a picture (Tang and Wang 2018).

    The vectors of the last K events are an image of K × D. A horizontal filter of height h ≤ K
    spans D and slides over time, ReLU and the maximum over time make one number of it (o); a
    vertical filter is a weighted sum of the K vectors (õ). With z = ReLU(W [o; õ] + b) and the
    vector P_u of the user, the score of item i is ⟨[z; P_u], w_i⟩ + b_i. Item vectors are of
    width 2D, and not those of the input.

    Departs from the paper: each place asks for the one item after it, not for the next T; any of
    this library's losses, not only BCE with 3 negatives; dropout also on the events. A user that
    training has not seen has P_u = 0, and events before the first are zeros.
    """

    Settings = CaserSettings

    def __init__(self, sizes: Sizes, settings: CaserSettings) -> None:
        super().__init__(sizes, settings)
        dim, order = settings.dim, settings.order
        self.order = order
        self.events = EventLookup(sizes, settings, scale=math.sqrt(dim))
        self.users = UserLookup(sizes.num_users, dim, tables=sizes.tables)
        self.across = nn.ModuleList(
            nn.Conv1d(dim, settings.horizontal, height) for height in range(1, order + 1)
        )
        self.along = nn.Linear(order, settings.vertical)
        self.hidden = nn.Linear(order * settings.horizontal + settings.vertical * dim, dim)
        self.targets = Lookup(sizes.num_items, 2 * dim, tables=sizes.tables)
        self.biases = sizes.tables.zeros(sizes.num_items)
        self.dropout = Dropout(settings.dropout)

    def states(self, histories: Histories) -> Tensor:
        """Return float[B, L, 2D]."""
        x_BLD = self.dropout(self.events(histories))
        x_BDT = F.pad(x_BLD.transpose(1, 2), (self.order - 1, 0))  # T = L + K - 1
        # A window of K places holds K - h + 1 of a filter's h: their maximum at each window.
        found = [
            F.max_pool1d(F.relu(filters(x_BDT)), self.order - height, stride=1).transpose(1, 2)
            for height, filters in enumerate(self.across)
        ]
        sums_BLDV = self.along(x_BDT.unfold(2, self.order, 1).transpose(1, 2))
        features = torch.cat([*found, sums_BLDV.flatten(2)], dim=2)
        z_BLD = F.relu(self.hidden(self.dropout(features)))
        users_BLD = self.users(histories.users).unsqueeze(1).expand_as(z_BLD)
        return torch.cat([z_BLD, users_BLD.to(z_BLD.dtype)], dim=2)

    def item_vectors(self) -> Tensor:
        """Return float[N, 2D]."""
        return self.targets.weight

    def item_biases(self) -> Tensor:
        """Return float[N]."""
        return self.biases
