"""Blocks that the networks share.

Shapes: B histories, L places, D the width, H heads, N rows of a table.

Padding stands on the left and must change nothing: it is looked up as zeros, nobody attends to it,
and positions are counted from the oldest event, so that a history gives the same states in however
wide a batch it comes.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from recs.nn.network import Histories, Settings, Sizes
from recs.nn.tables import WHOLE, Tables
from recs.schema import PADDING

DropoutShare = Annotated[float, Field(ge=0, lt=1)]


class EventSettings(Settings):
    """Settings that all networks have.

    Attributes
    ----------
    dim
        Width of the vectors.
    dropout
        Share of numbers that are dropped in training.
    event_dropout
        Share of events that networks do not see in training, though they are still asked for.
    event_types
        Whether an event is its item's vector plus its type's, not its item's alone.
    """

    dim: PositiveInt = 64
    dropout: DropoutShare = 0.2
    event_dropout: DropoutShare = 0.0
    event_types: bool = False

    @property
    def arrays(self) -> tuple[str, ...]:
        return ("items", "event_types") if self.event_types else ("items",)


class EncoderSettings(EventSettings):
    """Settings of networks of self-attention.

    Attributes
    ----------
    blocks, heads
        Layers, and the parts that each attends by; ``heads`` divides ``dim``.
    widening
        The feed-forward network's inner width, in ``dim``.
    attention_dropout
        Share of the attention weights that are dropped; above 0 the weights of all pairs of places
        are held in memory.
    norm
        ``pre`` normalises what enters a sub-layer, ``post`` the sum that leaves it.
    positions
        ``learned`` vectors, or ``fixed`` sines and cosines.
    relative_bias
        Whether each head also learns how much to attend to a place by how far away it is. Then a
        number is held for each pair of places and head, where no attention dropout has them held
        already.
    """

    blocks: PositiveInt = 2
    heads: PositiveInt = 2
    widening: PositiveInt = 1
    attention_dropout: DropoutShare = 0.0
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["learned", "fixed"] = "learned"
    relative_bias: bool = False

    @model_validator(mode="after")
    def _widths_fit(self) -> EncoderSettings:
        if self.dim % self.heads:
            raise ValueError(
                f"dim {self.dim} is not divisible by heads {self.heads}: change one of them"
            )
        if self.positions == "fixed" and self.dim % 2:
            raise ValueError(f"positions: fixed want an even dim, not {self.dim}")
        return self


class Dropout(nn.Dropout):
    """Dropout that is fast on CPUs: one number of torch's generator serves four elements.

    There the share is rounded to a multiple of 2^-16; elsewhere it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        if x.device.type != "cpu" or not self.training or not self.p:
            return super().forward(x)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()] >= dropped - 2**15
        factors = kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))
        return x * factors.view(x.shape)


class Lookup(nn.Module):
    """Vectors by id; :data:`~recs.nn.network.PADDING` has a zero one.

    Parameters
    ----------
    num, dim
        Rows and width of the table.
    std
        Of the normal distribution that the table starts from.
    tables
        How the table is held; ``weight`` is the rows of it that are here.
    """

    def __init__(self, num: int, dim: int, std: float = 0.02, tables: Tables = WHOLE) -> None:
        super().__init__()
        self.num, self.tables = num, tables
        self.weight = tables.normal(num, dim, std)

    def forward(self, ids: Tensor) -> Tensor:
        """Return float[..., D] for int64[...]."""
        return self.tables.read(self.weight, ids)


class UserLookup(Lookup):
    """Vectors by user; users that training has not seen (id >= ``num``) have a zero one."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return float[..., D] for int64[...]."""
        return super().forward(ids.masked_fill(ids >= self.num, PADDING))


class EventLookup(nn.Module):
    """What a network sees of an event: its item's vector and, where wanted, its type's.

    In training a share of the events is zeros, as padding is, but keeps its place: the network
    learns not to hang on any one event (Tan, Xu and Liu 2016), which counts where histories are
    short and items rare. Nothing is scaled up for it.

    Parameters
    ----------
    sizes
        Of the data.
    settings
        Of the network.
    scale
        What the sum is multiplied by. Vectors that are compared with queries are small, √D times
        too small to be an input (Vaswani et al. 2017, section 3.4).
    std
        Of the normal distribution that the tables start from.
    """

    def __init__(
        self, sizes: Sizes, settings: EventSettings, scale: float = 1.0, std: float = 0.02
    ) -> None:
        super().__init__()
        self.scale = scale
        self.event_dropout = settings.event_dropout
        self.items = Lookup(sizes.num_items, settings.dim, std, sizes.tables)
        self.types = (
            Lookup(sizes.num_event_types, settings.dim, std) if settings.event_types else None
        )

    def forward(self, histories: Histories) -> Tensor:
        """Return float[B, L, D]; zeros in the padding, and where the event is dropped."""
        x_BLD = self.items(histories.items)
        if self.types is not None:
            x_BLD = x_BLD + self.types(histories.event_types)
        x_BLD = x_BLD * self.scale
        if self.training and self.event_dropout:
            kept_BL = torch.rand(x_BLD.shape[:2], device=x_BLD.device) >= self.event_dropout
            x_BLD = x_BLD * kept_BL.unsqueeze(-1)
        return x_BLD


class Positions(nn.Module):
    """Vectors of the places of a history, counted from its oldest event, at 0.

    So each vector is learned from all histories that are as long, and the one that the newest event
    has at inference as much as any; counted from the right end, that one would be learned from the
    last events of histories alone. Padding on the left moves nothing.

    Parameters
    ----------
    length
        Places of the longest history.
    dim
        Width; even if ``kind`` is fixed.
    kind
        ``learned``, or ``fixed``: sin(p / 10000^(2i/D)) and cos of the same for place p (Vaswani
        et al. 2017, section 3.5).
    """

    #: float[length, D]
    table: Tensor

    def __init__(self, length: int, dim: int, kind: Literal["learned", "fixed"]) -> None:
        super().__init__()
        if kind == "learned":
            self.table = nn.Parameter(torch.empty(length, dim))
            nn.init.normal_(self.table, std=0.02)
        else:
            self.register_buffer("table", _waves(length, dim), persistent=False)

    def forward(self, present_BL: Tensor) -> Tensor:
        """Return float[B, L, D]; of places in the padding nothing is promised.

        Raises
        ------
        ValueError
            If L exceeds the length that the network was built for.
        """
        length, width = len(self.table), present_BL.shape[1]
        if width > length:
            raise ValueError(
                f"a batch of histories is {width} events wide, but the network reads {length}: "
                "keep the newest of them, or build it with a greater length"
            )
        places_BL = (present_BL.long().cumsum(1) - 1).clamp(min=0)
        return F.embedding(places_BL, self.table)


def _waves(length: int, dim: int) -> Tensor:
    places = torch.arange(length, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angles = places[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(length, dim)


def visible(present_BL: Tensor, causal: bool) -> Tensor:
    """Return bool[B, 1, L, L]: which places (columns) each place (row) attends to.

    Those of events, up to its own if ``causal``; and each to itself: a place in the padding would
    otherwise see nothing, and its softmax be NaN, which spreads in the backward pass.
    """
    length = present_BL.shape[1]
    square = torch.ones(length, length, dtype=torch.bool, device=present_BL.device)
    mask_BLL = present_BL[:, None, :]
    if causal:
        mask_BLL = mask_BLL & square.tril()
    return (mask_BLL | torch.eye(length, dtype=torch.bool, device=square.device)).unsqueeze(1)


class RelativeBias(nn.Module):
    """What each head adds to the score of a place, by its distance (Raffel et al. 2020, 2.1).

    Every distance has a number of its own, not a share of a bucket; they start at 0.

    Parameters
    ----------
    length
        Places of the longest history.
    heads
        Of the attention.
    causal
        Whether places see none after them, whose distances then need no numbers.
    """

    def __init__(self, length: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.after = 0 if causal else length - 1
        self.table = nn.Parameter(torch.zeros(length + self.after, heads))

    def forward(self, width: int) -> Tensor:
        """Return float[H, L, L] for a width of L: of each place (row), what it adds to each."""
        places_L = torch.arange(width, device=self.table.device)
        before_LL = places_L[:, None] - places_L
        return F.embedding((before_LL + self.after).clamp(min=0), self.table).permute(2, 0, 1)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of a sequence to itself (Vaswani et al. 2017).

    softmax(QKᵀ/√(D/H) + bias) V for each head, then a linear map.
    """

    def __init__(
        self, dim: int, heads: int, dropout: float, bias: RelativeBias | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.bias = bias
        self.dropout = Dropout(dropout)
        self.inward = nn.Linear(dim, 3 * dim)
        self.outward = nn.Linear(dim, dim)

    def forward(self, x_BLD: Tensor, mask_B1LL: Tensor) -> Tensor:
        """Return float[B, L, D]."""
        B, L, D = x_BLD.shape
        parts = self.inward(x_BLD).view(B, L, 3, self.heads, D // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        bias_HLL = None if self.bias is None else self.bias(L).to(query.dtype)
        dropped = self.dropout.p if self.training else 0.0
        if dropped and x_BLD.device.type == "cpu":
            # There torch has no fast kernel with dropout: the same, step by step.
            scores_BHLL = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            if bias_HLL is not None:
                scores_BHLL = scores_BHLL + bias_HLL
            scores_BHLL = scores_BHLL.masked_fill(~mask_B1LL, -torch.inf)
            y_BHLE = self.dropout(scores_BHLL.softmax(-1)) @ value
        else:
            mask = mask_B1LL
            if bias_HLL is not None:
                mask = torch.where(mask_B1LL, bias_HLL, -torch.inf)
            y_BHLE = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropped
            )
        return self.outward(y_BHLE.transpose(1, 2).reshape(B, L, D))


class FeedForward(nn.Sequential):
    """The same network at each place: act(xW₁ + b₁) W₂ + b₂."""

    def __init__(self, dim: int, inner: int, activation: nn.Module, dropout: float) -> None:
        super().__init__(nn.Linear(dim, inner), activation, Dropout(dropout), nn.Linear(inner, dim))


class Block(nn.Module):
    """Self-attention and a feed-forward network, each with a skip connection and LayerNorm."""

    def __init__(
        self, length: int, settings: EncoderSettings, activation: nn.Module, causal: bool
    ) -> None:
        super().__init__()
        dim, heads = settings.dim, settings.heads
        self.pre = settings.norm == "pre"
        bias = RelativeBias(length, heads, causal) if settings.relative_bias else None
        self.attention = SelfAttention(dim, heads, settings.attention_dropout, bias)
        self.network = FeedForward(dim, dim * settings.widening, activation, settings.dropout)
        self.attention_norm, self.network_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(settings.dropout)

    def forward(self, x_BLD: Tensor, mask_B1LL: Tensor) -> Tensor:
        """Return float[B, L, D]."""
        if self.pre:
            x_BLD = x_BLD + self.dropout(self.attention(self.attention_norm(x_BLD), mask_B1LL))
            return x_BLD + self.dropout(self.network(self.network_norm(x_BLD)))
        x_BLD = self.attention_norm(x_BLD + self.dropout(self.attention(x_BLD, mask_B1LL)))
        return self.network_norm(x_BLD + self.dropout(self.network(x_BLD)))


class Encoder(nn.Module):
    """Blocks of self-attention over events and their positions.

    One more LayerNorm than the blocks have: with ``norm: pre`` on what leaves the last of them,
    with ``post`` on what enters the first.

    Parameters
    ----------
    length
        Places of the longest history.
    settings
        Of the network.
    activation
        Of the feed-forward networks.
    causal
        Whether a place sees only those before it and itself.
    """

    def __init__(
        self, length: int, settings: EncoderSettings, activation: nn.Module, causal: bool
    ) -> None:
        super().__init__()
        self.causal = causal
        self.pre = settings.norm == "pre"
        self.positions = Positions(length, settings.dim, settings.positions)
        self.dropout = Dropout(settings.dropout)
        self.norm = nn.LayerNorm(settings.dim)
        self.blocks = nn.ModuleList(
            Block(length, settings, activation, causal) for _ in range(settings.blocks)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x_BLD: Tensor, present_BL: Tensor) -> Tensor:
        """Return float[B, L, D]; of places in the padding nothing is promised."""
        x_BLD = x_BLD + self.positions(present_BL)
        x_BLD = self.dropout(x_BLD if self.pre else self.norm(x_BLD))
        mask_B1LL = visible(present_BL, self.causal)
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_B1LL)
        return self.norm(x_BLD) if self.pre else x_BLD
