"""Factorised Markov chains of the first order: FMC, FPMC and TransRec.

Shapes: B histories, L places, D the width, N items.

The query of a place depends on its event and the user alone. Events take part as an item's vector
and, with ``event_types``, its type's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recs.nn.layers import Dropout, EventLookup, EventSettings, Lookup, UserLookup
from recs.nn.network import Histories, SequenceNetwork, Sizes


class FMC(SequenceNetwork):
    """A factorised Markov chain (Rendle et al. 2010): ⟨P_l, Q_i⟩ for item i after item l.

    P and Q are tables of their own. The paper trains it by BPR; any of this library's losses
    serves.
    """

    Settings = EventSettings

    def __init__(self, sizes: Sizes, settings: EventSettings) -> None:
        super().__init__(sizes, settings)
        std = settings.dim**-0.5
        self.events = EventLookup(sizes, settings, std=std)
        self.targets = Lookup(sizes.num_items, settings.dim, std, sizes.tables)
        self.dropout = Dropout(settings.dropout)

    def states(self, histories: Histories) -> Tensor:
        """Return float[B, L, D]."""
        return self.dropout(self.events(histories))

    def item_vectors(self) -> Tensor:
        """Return float[N, D]."""
        return self.targets.weight


class FPMC(SequenceNetwork):
    """A Markov chain beside a matrix factorisation (Rendle et al. 2010).

    The score of item i for user u after item l is ⟨V_u^{U,I}, V_i^{I,U}⟩ + ⟨V_i^{I,L}, V_l^{L,I}⟩:
    the product of the query [V_u^{U,I}; V_l^{L,I}] and the item's [V_i^{I,U}; V_i^{I,L}]. Baskets
    are of one item. A user that training has not seen has V_u = 0.

    Departs from the paper: any of this library's losses, not only S-BPR, −ln σ(s⁺ − s⁻).
    """

    Settings = EventSettings

    def __init__(self, sizes: Sizes, settings: EventSettings) -> None:
        super().__init__(sizes, settings)
        std = settings.dim**-0.5
        self.events = EventLookup(sizes, settings, std=std)
        self.users = UserLookup(sizes.num_users, settings.dim, std, sizes.tables)
        self.targets = Lookup(sizes.num_items, 2 * settings.dim, std, sizes.tables)
        self.dropout = Dropout(settings.dropout)

    def states(self, histories: Histories) -> Tensor:
        """Return float[B, L, 2D]."""
        x_BLD = self.events(histories)
        users_BLD = self.users(histories.users).unsqueeze(1).expand_as(x_BLD)
        return self.dropout(torch.cat([users_BLD, x_BLD], dim=2))

    def item_vectors(self) -> Tensor:
        """Return float[N, 2D]."""
        return self.targets.weight


class TransRec(SequenceNetwork):
    """Users as translations between items (He, Kang and McAuley 2017).

    The score of item i for user u after item l is β_i − ‖γ_l + t + t_u − γ_i‖², t a translation of
    all users and t_u the user's own, 0 for a user that training has not seen. With the query
    q = γ_l + t + t_u that is ⟨q, 2γ_i⟩ + (β_i − ‖γ_i‖²) − ‖q‖²; the last term is the same for all
    items and left out: no ranking, softmax or difference of scores depends on it. BCE and the
    terms r² of ``bpr_max`` and ``top1_max`` do, and train a different model.

    Departs from the paper: the squared Euclidean distance only, not L1; vectors are not projected
    into the unit ball (weight decay holds them); any of this library's losses, not only S-BPR.
    """

    Settings = EventSettings

    def __init__(self, sizes: Sizes, settings: EventSettings) -> None:
        super().__init__(sizes, settings)
        self.events = EventLookup(sizes, settings, std=settings.dim**-0.5)
        self.users = UserLookup(sizes.num_users, settings.dim, 0.0, sizes.tables)
        self.translation = nn.Parameter(torch.zeros(settings.dim))
        self.biases = sizes.tables.zeros(sizes.num_items)
        self.dropout = Dropout(settings.dropout)

    def states(self, histories: Histories) -> Tensor:
        """Return float[B, L, D]."""
        users_B1D = self.users(histories.users).unsqueeze(1)
        return self.dropout(self.events(histories) + self.translation + users_B1D)

    def item_vectors(self) -> Tensor:
        """Return float[N, D]: 2γ."""
        return 2 * self.events.items.weight

    def item_biases(self) -> Tensor:
        """Return float[N]: β − ‖γ‖²."""
        return self.biases - self.events.items.weight.square().sum(1)
