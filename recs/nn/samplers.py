"""Negatives in training, drawn on the device.

What is drawn for a place is a hash of (seed, step, number of the place in the global batch, draw):
the same on every device and however the batch is split over ranks. Draws that are positives of the
user are not drawn again, but masked by :func:`collisions`.

Shapes: M asked places, K negatives, N items, P items of the pool, B histories, D the width.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recs.sampling.groups import alias_table, drawable
from recs.sampling.hashing import TRAINING_NEGATIVES
from recs.settings import Strict

#: Scores that a block of places has at once when hard negatives are looked for.
_BLOCK = 2**24
#: What stands for the number of a place where all places share their negatives.
_SHARED = -1


class UserPositives(NamedTuple):
    """All items that the users of a batch ever wanted.

    Attributes
    ----------
    offsets : int64[B+1]
        Row b's items are ``items[offsets[b]:offsets[b + 1]]``.
    items : int32[nnz]
        Ascending within a row.
    """

    offsets: Tensor
    items: Tensor


class Previous(NamedTuple):
    """What the model of the previous epoch gives for the places, without gradients.

    Attributes
    ----------
    queries : float[M, D]
    vectors : float[N, D]
    biases : float[N]
        Or None.
    """

    queries: Tensor
    vectors: Tensor
    biases: Tensor | None = None


class Places(NamedTuple):
    """The places of a batch that are asked for an item.

    Attributes
    ----------
    step
        Number of the optimiser's step.
    numbers : int64[M]
        Of the places in the global batch, at least 0: equal however it is split over ranks.
    owners : int64[M]
        Rows of the batch.
    targets : int64[M]
        Items that are asked for.
    pool : int64[P]
        Targets of the global batch, in an order that all ranks share; what is drawn in-batch.
    positives
        Of the rows of the batch; None lets only the target itself collide.
    previous
        Read by hard negatives only; None before the second epoch.
    liked : bool[M]
        Whether the user wanted the item that is asked for; None: all were.
    """

    step: int
    numbers: Tensor
    owners: Tensor
    targets: Tensor
    pool: Tensor
    positives: UserPositives | None = None
    previous: Previous | None = None
    liked: Tensor | None = None

    def take(self, part: slice | Tensor) -> Places:
        """Return some of the places, of the same batch; without what only drawing reads.

        ``part`` are their indices, or bool[M].
        """
        return self._replace(
            numbers=self.numbers[part],
            owners=self.owners[part],
            targets=self.targets[part],
            previous=None,
            liked=None if self.liked is None else self.liked[part],
        )


class DrawnNegatives(NamedTuple):
    """What was drawn.

    Attributes
    ----------
    items : int64[M, K] or int64[K]
        For each place, or for all.
    log_q : float[M, K] or float[K]
        ln of the probability of each in one draw.
    """

    items: Tensor
    log_q: Tensor

    def take(self, part: slice) -> DrawnNegatives:
        """Return those of some places."""
        shared = self.items.dim() == 1
        return self if shared else DrawnNegatives(self.items[part], self.log_q[part])


# --- hashing ---


def _signed(constant: int) -> int:
    """Return the int64 with the bits of a uint64."""
    return constant - 2**64 if constant >= 2**63 else constant


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014), on the bits of int64.

    Shifts of int64 keep the sign: masks take off what they bring in.
    """
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _FIRST
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _SECOND
    return x ^ ((x >> 31) & (2**33 - 1))


def random_bits(seed: int, step: int, numbers: Tensor, draws: Tensor) -> Tensor:
    """Return 64 random bits for each place and draw, hashed as in :mod:`recs.sampling.hashing`.

    Parameters
    ----------
    seed, step
        Any int64.
    numbers : int64[M]
        Of the places.
    draws : int64[K]
        Indices of the draws.

    Returns
    -------
    int64[M, K]
    """
    stream = _mix(torch.full((1,), seed, dtype=torch.int64, device=numbers.device) + _GOLDEN)
    stream = _mix((stream ^ TRAINING_NEGATIVES) + _GOLDEN)
    stream = _mix((stream ^ step) + _GOLDEN)
    stream_M = _mix((stream ^ numbers) + _GOLDEN)
    return _mix((stream_M[:, None] ^ draws) + _GOLDEN)


def below(bits: Tensor, bound: int) -> Tensor:
    """Return integers in [0, bound), bound < 2^31, from the upper 32 of random bits."""
    return (((bits >> 32) & (2**32 - 1)) * bound) >> 32


# --- collisions ---


def collides(owners: Tensor, candidates: Tensor, positives: UserPositives) -> Tensor:
    """Return which candidates are positives of their row.

    One binary search for each pair of a row and a candidate, over pairs (row, item) in one number.

    Parameters
    ----------
    owners : int64[M]
        Rows of the batch.
    candidates : int64[M, K] or int64[K]
        Items for each of them, or for all.
    positives
        Of the rows of the batch.

    Returns
    -------
    bool[M, K]
    """
    offsets, items = positives
    rows_B = torch.arange(len(offsets) - 1, device=items.device)
    if candidates.dim() == 1:  # once for each row: there are far fewer than places
        each_BK = candidates.expand(len(rows_B), -1)
        return collides(rows_B, each_BK, positives)[owners]
    if not len(items):
        return torch.zeros_like(candidates, dtype=torch.bool)
    rows = torch.repeat_interleave(rows_B, offsets.diff(), output_size=len(items))
    known = (rows << 32) | items.long()
    asked_MK = (owners[:, None] << 32) | candidates
    found_MK = torch.searchsorted(known, asked_MK).clamp_(max=len(known) - 1)
    return known[found_MK] == asked_MK


def collisions(candidates: Tensor, places: Places) -> Tensor:
    """Return bool[M, K]: which candidates, [M, K] or [K], are the place's target or a positive."""
    own_MK = candidates == places.targets[:, None]
    if places.positives is None:
        return own_MK
    return own_MK | collides(places.owners, candidates, places.positives)


# --- samplers ---


class _Drawn(Strict):
    """Settings of all samplers.

    Attributes
    ----------
    negatives
        K, drawn with repetition.
    shared
        Whether all places of the global batch get the same K.
    """

    negatives: PositiveInt = 1
    shared: bool = False


class UniformSettings(_Drawn):
    """All recommendable items alike."""

    name: Literal["uniform"] = "uniform"


class PopularitySettings(_Drawn):
    """Items in proportion to count^exponent."""

    name: Literal["popularity"] = "popularity"
    exponent: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0


class InBatchSettings(_Drawn):
    """Targets of the global batch."""

    name: Literal["in_batch"] = "in_batch"


class MixedSettings(_Drawn):
    """A share of the draws uniform, the others popular or in-batch.

    Attributes
    ----------
    uniform
        The share; of K draws round(uniform · K) are uniform, always the first.
    others
        Where the others come from.
    exponent
        Of ``others: popularity``.
    """

    name: Literal["mixed"] = "mixed"
    uniform: Annotated[float, Field(ge=0, le=1)] = 0.5
    others: Literal["popularity", "in_batch"] = "popularity"
    exponent: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0


class HardSettings(Strict):
    """The highest scores under the model of the previous epoch; uniform in the first.

    Attributes
    ----------
    negatives
        K for each place, drawn with repetition.
    top
        The best non-positives of a place, of which K are chosen at random.
    """

    name: Literal["hard"] = "hard"
    negatives: PositiveInt = 1
    top: PositiveInt = 100


SamplerSettings = Annotated[
    UniformSettings | PopularitySettings | InBatchSettings | MixedSettings | HardSettings,
    Field(discriminator="name"),
]


class Sampler(nn.Module):
    """What negatives are drawn by; tables move with ``to(device)`` and are not saved.

    Parameters
    ----------
    num_items
        N, below 2^31.
    seed
        Of all draws.
    """

    def __init__(self, num_items: int, seed: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.seed = seed

    def draw(self, places: Places) -> DrawnNegatives:
        """Return negatives for places; of M = 0 places of a nonempty global batch too."""
        raise NotImplementedError

    def log_q(self, items: Tensor) -> Tensor:
        """Return float[...]: ln of the probability of items, int64[...], in one draw."""
        raise NotImplementedError


class _Counted(Sampler):
    """A sampler whose draws are made of random bits, each with a known probability."""

    def __init__(self, num_items: int, seed: int, settings: _Drawn) -> None:
        super().__init__(num_items, seed)
        self.num_draws, self.shared = settings.negatives, settings.shared

    def draw(self, places: Places) -> DrawnNegatives:
        device = places.numbers.device
        numbers = places.numbers.new_full((1,), _SHARED) if self.shared else places.numbers
        draws = torch.arange(self.num_draws, device=device)
        items = self._items(random_bits(self.seed, places.step, numbers, draws), places)
        if self.shared:
            items = items[0]
        return DrawnNegatives(items, self.log_q(items))

    def _items(self, bits_MK: Tensor, places: Places) -> Tensor:
        """Return int64[M, K] of random bits."""
        raise NotImplementedError


class Uniform(_Counted):
    """Draws all recommendable items alike.

    Raises
    ------
    ValueError
        If there are none.
    """

    ids: Tensor

    def __init__(
        self, num_items: int, seed: int, settings: _Drawn, recommendable: Tensor | None = None
    ) -> None:
        super().__init__(num_items, seed, settings)
        ids = torch.arange(num_items) if recommendable is None else recommendable.nonzero()[:, 0]
        if not len(ids):
            raise ValueError("no item is recommendable, so that none can be drawn")
        self.register_buffer("ids", ids, persistent=False)

    def _items(self, bits_MK: Tensor, places: Places) -> Tensor:
        return self.ids[below(bits_MK, len(self.ids))]

    def log_q(self, items: Tensor) -> Tensor:
        return torch.full(items.shape, -np.log(len(self.ids)), device=items.device)


class Popularity(_Counted):
    """Draws items in proportion to their weights, by Vose's alias method.

    Parameters
    ----------
    weights : float64[N]
        An item of weight 0 is never drawn; for :meth:`log_q`, which targets are asked for too, it
        counts as the smallest weight above 0.
    """

    alias_N: Tensor
    thresholds_N: Tensor
    log_q_N: Tensor

    def __init__(self, num_items: int, seed: int, settings: _Drawn, weights: np.ndarray) -> None:
        super().__init__(num_items, seed, settings)
        weights = drawable(weights)
        table = alias_table(weights)
        alias, thresholds = (table & 0xFFFFFFFF).astype(np.int64), (table >> 32).astype(np.int64)
        self.register_buffer("alias_N", torch.from_numpy(alias), persistent=False)
        self.register_buffer("thresholds_N", torch.from_numpy(thresholds), persistent=False)
        self.register_buffer("log_q_N", _log_share(weights), persistent=False)

    def _items(self, bits_MK: Tensor, places: Places) -> Tensor:
        slots_MK = below(bits_MK, self.num_items)
        kept_MK = (bits_MK & (2**32 - 1)) < self.thresholds_N[slots_MK]
        return torch.where(kept_MK, slots_MK, self.alias_N[slots_MK])

    def log_q(self, items: Tensor) -> Tensor:
        return self.log_q_N[items]


class InBatch(_Counted):
    """Draws from the targets of the global batch.

    Parameters
    ----------
    counts : float64[N]
        How often items are targets, for :meth:`log_q`: its mean over batches stands for the
        share of a batch (Yi et al. 2019 estimate the same from a stream).
    """

    log_q_N: Tensor

    def __init__(self, num_items: int, seed: int, settings: _Drawn, counts: np.ndarray) -> None:
        super().__init__(num_items, seed, settings)
        self.register_buffer("log_q_N", _log_share(drawable(counts)), persistent=False)

    def _items(self, bits_MK: Tensor, places: Places) -> Tensor:
        return places.pool[below(bits_MK, len(places.pool))]

    def log_q(self, items: Tensor) -> Tensor:
        return self.log_q_N[items]


class Mixed(_Counted):
    """Draws some uniformly, the others by another sampler; ``log_q`` is that of the mixture."""

    def __init__(
        self,
        num_items: int,
        seed: int,
        settings: MixedSettings,
        others: _Counted,
        recommendable: Tensor | None = None,
    ) -> None:
        super().__init__(num_items, seed, settings)
        self.num_uniform = round(settings.uniform * settings.negatives)
        self.uniform = Uniform(num_items, seed, settings, recommendable)
        self.others = others

    def _items(self, bits_MK: Tensor, places: Places) -> Tensor:
        first, rest = bits_MK[:, : self.num_uniform], bits_MK[:, self.num_uniform :]
        parts = [self.uniform._items(first, places), self.others._items(rest, places)]
        return torch.cat(parts, dim=1)

    def log_q(self, items: Tensor) -> Tensor:
        share = self.num_uniform / self.num_draws
        q = share * self.uniform.log_q(items).exp() + (1 - share) * self.others.log_q(items).exp()
        return q.log()


class Hard(Sampler):
    """Draws from the best non-positives under the model of the previous epoch.

    ``log_q`` is that of uniform draws: what a hard draw's probability is, nobody knows.
    """

    def __init__(
        self,
        num_items: int,
        seed: int,
        settings: HardSettings,
        recommendable: Tensor | None = None,
    ) -> None:
        super().__init__(num_items, seed)
        self.num_draws = settings.negatives
        uniform = UniformSettings(negatives=settings.negatives)
        self.uniform = Uniform(num_items, seed, uniform, recommendable)
        self.top = min(settings.top, len(self.uniform.ids))

    def draw(self, places: Places) -> DrawnNegatives:
        if places.previous is None:
            return self.uniform.draw(places)
        top_MT = hard_candidates(places.previous, places, self.top, self.uniform.ids)
        draws = torch.arange(self.num_draws, device=top_MT.device)
        bits_MK = random_bits(self.seed, places.step, places.numbers, draws)
        items = top_MT.gather(1, below(bits_MK, self.top))
        return DrawnNegatives(items, self.log_q(items))

    def log_q(self, items: Tensor) -> Tensor:
        return self.uniform.log_q(items)


@torch.no_grad()
def hard_candidates(previous: Previous, places: Places, top: int, ids: Tensor) -> Tensor:
    """Return int64[M, top]: of the items ``ids`` those of the highest scores that are no positives.

    Where a place has fewer of them, its last ones are positives among ``ids``, which collide.
    """
    queries, vectors, biases = previous
    vectors_ID = vectors[ids]
    biases_I = None if biases is None else biases[ids]
    columns_N = ids.new_full((len(vectors),), -1)  # of the items among ids
    columns_N[ids] = torch.arange(len(ids), device=ids.device)
    rows = max(1, _BLOCK // len(ids))
    best = []
    for first in range(0, len(queries), rows):
        block = slice(first, first + rows)
        scores_RI = (queries[block] @ vectors_ID.T).float()
        if biases_I is not None:
            scores_RI += biases_I
        own = torch.arange(len(scores_RI), device=ids.device), places.targets[block]
        _hide(scores_RI, own, columns_N)
        if places.positives is not None:
            _hide(scores_RI, _pairs(places.owners[block], places.positives), columns_N)
        best.append(ids[scores_RI.topk(top, dim=1).indices])
    return torch.cat(best) if best else places.targets.new_empty(0, top)


def _hide(scores_RI: Tensor, pairs: tuple[Tensor, Tensor], columns_N: Tensor) -> None:
    """Give pairs of a row and an item -inf, where the item has a column."""
    rows, items = pairs
    columns = columns_N[items]
    there = columns >= 0
    scores_RI[rows[there], columns[there]] = -torch.inf


def _pairs(owners: Tensor, positives: UserPositives) -> tuple[Tensor, Tensor]:
    """Return, of each place and each positive of its row, the place's index and the item."""
    offsets, items = positives
    counts_R = offsets.diff()[owners]
    places = torch.repeat_interleave(torch.arange(len(owners), device=items.device), counts_R)
    firsts = offsets[owners] - (counts_R.cumsum(0) - counts_R)
    slots = torch.arange(len(places), device=items.device) + firsts[places]
    return places, items[slots].long()


def _log_share(weights: np.ndarray) -> Tensor:
    """Return float32[N]: ln of each weight's share, 0 taken for the smallest above it."""
    return torch.from_numpy(
        np.log(np.maximum(weights, weights[weights > 0].min()) / weights.sum())
    ).float()


def make_sampler(
    settings: SamplerSettings,
    num_items: int,
    seed: int,
    counts: Tensor | None = None,
    recommendable: Tensor | None = None,
) -> Sampler:
    """Return the sampler that settings describe.

    Parameters
    ----------
    settings
        Of the sampler.
    num_items
        N.
    seed
        Of all draws.
    counts : float[N]
        How often each item is asked for in training; for all but uniform and hard negatives.
    recommendable : bool[N]
        Items that uniform and hard negatives are of; None: all.

    Raises
    ------
    ValueError
        If counts are lacking, of another length, or nothing can be drawn.
    """
    if isinstance(settings, UniformSettings):
        return Uniform(num_items, seed, settings, recommendable)
    if isinstance(settings, HardSettings):
        return Hard(num_items, seed, settings, recommendable)
    values = _checked(settings.name, num_items, counts)
    if isinstance(settings, PopularitySettings):
        return Popularity(num_items, seed, settings, _powers(values, settings.exponent))
    if isinstance(settings, InBatchSettings):
        return InBatch(num_items, seed, settings, values)
    others = (
        Popularity(num_items, seed, settings, _powers(values, settings.exponent))
        if settings.others == "popularity"
        else InBatch(num_items, seed, settings, values)
    )
    return Mixed(num_items, seed, settings, others, recommendable)


def _checked(name: str, num_items: int, counts: Tensor | None) -> np.ndarray:
    if counts is None or len(counts) != num_items:
        given = "none" if counts is None else len(counts)
        raise ValueError(
            f"{name} negatives want the counts of all {num_items} items, but {given} were given: "
            "pass them, or use uniform negatives"
        )
    return counts.double().cpu().numpy()


def _powers(counts: np.ndarray, exponent: float) -> np.ndarray:
    """Return count^exponent; 0 stays 0 even where the exponent is 0."""
    return np.where(counts > 0, counts**exponent, 0.0)
