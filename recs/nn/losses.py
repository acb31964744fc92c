"""Losses of sequential networks, and the negatives that they are made with.

All take the places that are asked for an item, gathered from the batch, and return the *sum* of
the weighted losses over them in float32 (float64 stays): whoever trains divides by the weight of
the global batch.

Shapes: M asked places, K negatives, N items, D the width. Letters: r⁺ is the score of the item
that is asked for, r_j those of its negatives, w the weight of the place.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recs.nn.samplers import (
    DrawnNegatives,
    Hard,
    InBatch,
    InBatchSettings,
    Mixed,
    Places,
    SamplerSettings,
    UniformSettings,
    collisions,
    make_sampler,
)
from recs.nn.tables import WHOLE, Tables
from recs.settings import Strict

#: Logits that full cross-entropy holds at once: what stays in a CPU's cache, and what keeps a GPU
#: busy.
_CPU_LOGITS, _GPU_LOGITS = 2**20, 2**27
#: Fewest places of a chunk before the items are cut too: each chunk of places passes over the
#: gradient of all items' vectors once.
_FEWEST_PLACES = 256
#: A product with all items' vectors costs less than looking up and adding to K of them for each
#: place if there are at most this many times K items.
_CHEAPER = 16
#: Numbers that scores of sampled negatives take at once: beyond, places are taken in parts.
_MOST_NUMBERS = 2**28


class Scores(NamedTuple):
    """Scores of the asked places.

    Attributes
    ----------
    positives : float[M]
        r⁺.
    negatives : float[M, K]
        r_j.
    collisions : bool[M, K]
        Negatives that do not count; None if all do.
    """

    positives: Tensor
    negatives: Tensor
    collisions: Tensor | None = None

    def wide(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all three, scores in float32 at least, collisions False where there is none."""
        excluded_MK = self.collisions
        if excluded_MK is None:
            excluded_MK = torch.zeros_like(self.negatives, dtype=torch.bool)
        return _wide(self.positives), _wide(self.negatives), excluded_MK


# --- losses over sampled negatives ---


def bce(scores: Scores, weights: Tensor) -> Tensor:
    """Binary cross-entropy: Σ w (−ln σ(r⁺) − Σ_j ln(1 − σ(r_j))).

    With one uniform negative the loss of SASRec (Kang and McAuley 2018).
    """
    return _binary(scores, weights, 1.0)


def gbce(scores: Scores, weights: Tensor, calibration: float, rate: float) -> Tensor:
    """Binary cross-entropy calibrated for sampling (Petrov and Macdonald 2023).

    Σ w/(K+1) (−β ln σ(r⁺) − Σ_j ln(1 − σ(r_j))) with β = α (t (1 − 1/α) + 1/α): the paper's
    generalised sigmoid σ(r)^β, taken out of the logarithm.

    Parameters
    ----------
    calibration
        t in [0, 1]: 0 is plain BCE, 1 gives back unbiased probabilities.
    rate
        α: K over the number of all negatives, N − 1.
    """
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    return _binary(scores, weights, beta) / (scores.negatives.shape[1] + 1)


def _binary(scores: Scores, weights: Tensor, beta: float) -> Tensor:
    positives_M, negatives_MK, excluded_MK = scores.wide()
    against_M = F.softplus(negatives_MK).masked_fill(excluded_MK, 0.0).sum(1)
    return _total(beta * F.softplus(-positives_M) + against_M, weights)


def relevance(scores: Scores, weights: Tensor, liked: Tensor) -> Tensor:
    """Binary cross-entropy of what users did and did not want.

    Σ w (−ln σ(r⁺) − Σ_j ln(1 − σ(r_j))) over items that were wanted, as :func:`bce`, and
    Σ w −ln(1 − σ(r⁺)) over those that were not, which need no negatives.

    Parameters
    ----------
    liked : bool[M]
        Which are which.
    """
    disliked_M = F.softplus(_wide(scores.positives))
    return bce(scores, weights * liked) + _total(disliked_M, weights * ~liked)


def sampled_cross_entropy(
    scores: Scores,
    weights: Tensor,
    log_q_positives: Tensor | None = None,
    log_q_negatives: Tensor | None = None,
) -> Tensor:
    """Cross-entropy over the asked item and its negatives (Jean et al. 2015).

    Σ w (ln(e^{r⁺} + Σ_j e^{r_j}) − r⁺), each score less its ln q where that is given.

    Parameters
    ----------
    log_q_positives : float[M]
        ln of the probability with which the asked items are drawn.
    log_q_negatives : float[K] or float[M, K]
        The same of the negatives.
    """
    positives_M, negatives_MK, excluded_MK = scores.wide()
    if log_q_positives is not None:
        positives_M = positives_M - log_q_positives
    if log_q_negatives is not None:
        negatives_MK = negatives_MK - log_q_negatives
    negatives_MK = negatives_MK.masked_fill(excluded_MK, -torch.inf)
    logits = torch.cat([positives_M[:, None], negatives_MK], dim=1)
    return _total(logits.logsumexp(1) - positives_M, weights)


def bpr(scores: Scores, weights: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al. 2009): Σ w mean_j −ln σ(r⁺ − r_j).

    The mean is over negatives that count; a place without any adds nothing.
    """
    positives_M, negatives_MK, excluded_MK = scores.wide()
    losses_MK = F.softplus(negatives_MK - positives_M[:, None]).masked_fill(excluded_MK, 0.0)
    counts_M = (~excluded_MK).sum(1).clamp(min=1)
    return _total(losses_MK.sum(1) / counts_M, weights)


def bpr_max(scores: Scores, weights: Tensor, regularisation: float) -> Tensor:
    """BPR-max (Hidasi and Karatzoglou 2018), equation 10.

    Σ w (−ln Σ_j s_j σ(r⁺ − r_j) + λ Σ_j s_j r_j²), s the softmax of the negatives' scores; a place
    without negatives adds nothing.
    """
    positives_M, negatives_MK, excluded_MK = scores.wide()
    log_s_MK, alone_M = _log_shares(negatives_MK, excluded_MK)
    wins_M = (log_s_MK + F.logsigmoid(positives_M[:, None] - negatives_MK)).logsumexp(1)
    squares_M = (log_s_MK.exp() * negatives_MK.square()).sum(1)
    return _total((regularisation * squares_M - wins_M).masked_fill(alone_M, 0.0), weights)


def top1_max(scores: Scores, weights: Tensor) -> Tensor:
    """TOP1-max (Hidasi and Karatzoglou 2018), equation 9, with its regularisation σ(r_j²).

    Σ w Σ_j s_j (σ(r_j − r⁺) + σ(r_j²)), s the softmax of the negatives' scores; a place without
    negatives adds nothing.
    """
    positives_M, negatives_MK, excluded_MK = scores.wide()
    log_s_MK, alone_M = _log_shares(negatives_MK, excluded_MK)
    losses_MK = torch.sigmoid(negatives_MK - positives_M[:, None]) + negatives_MK.square().sigmoid()
    return _total((log_s_MK.exp() * losses_MK).sum(1).masked_fill(alone_M, 0.0), weights)


def _log_shares(negatives_MK: Tensor, excluded_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-softmax of the scores that count, and which places have none.

    A score that does not count is very small, not -inf, whose gradients are NaN where none counts.
    """
    masked_MK = negatives_MK.masked_fill(excluded_MK, torch.finfo(negatives_MK.dtype).min)
    return masked_MK.log_softmax(1), excluded_MK.all(1)


def _total(losses_M: Tensor, weights: Tensor) -> Tensor:
    """Return Σ w · loss; not as a product of matrices, which autocast would make of bfloat16."""
    return (losses_M * weights).sum()


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


# --- full cross-entropy ---


def full_cross_entropy(
    queries: Tensor,
    targets: Tensor,
    vectors: Tensor,
    biases: Tensor | None,
    weights: Tensor,
    chunk: int | None = None,
    tables: Tables = WHOLE,
) -> Tensor:
    """Cross-entropy over all items: Σ w (ln Σ_i e^{⟨q, v_i⟩ + b_i} − ⟨q, v_t⟩ − b_t).

    Gradients are computed beside the loss, a chunk of places at a time, so that M × N logits never
    exist at once (as Cut Your Losses, Wijmans et al. 2025, and Liger Kernel, Hsu et al. 2024, do
    on GPUs). Second derivatives are not to be had.

    Where tables are sharded, each process scores the places of all of them against its own rows,
    as Megatron-LM (Shoeybi et al. 2019) does: queries are gathered, of each place a maximum, a sum
    and the target's score are reduced, and the queries' gradients go back; of the ΣM places of all
    processes, a process holds 2 ΣM·D numbers and sends and receives as many, and 3 ΣM more.

    Parameters
    ----------
    queries : float[M, D]
    targets : int64[M]
    vectors : float[N, D]
        Of ``tables``: the rows of this process, at least one.
    biases : float[N]
        Or None.
    weights : float[M]
        Of the places; not differentiated.
    chunk
        Places at once; None lets the device and N choose. If N is so great that too few would be
        left, the items are cut too and their logits computed twice.

    tables
        How ``vectors`` and ``biases`` are held.

    Returns
    -------
    float[]
        Of the places of this process. With autocast on, products are in its type, sums in float32.
    """
    if torch.is_autocast_enabled(queries.device.type):
        product = torch.get_autocast_dtype(queries.device.type)
    else:
        product = torch.promote_types(queries.dtype, vectors.dtype)
    if not torch.is_grad_enabled():
        queries, vectors = queries.detach(), vectors.detach()
        biases = None if biases is None else biases.detach()
    return _FullCrossEntropy.apply(
        queries, targets, vectors, biases, weights, chunk, tables, product
    )


class _FullCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        targets: Tensor,
        vectors: Tensor,
        biases: Tensor | None,
        weights: Tensor,
        chunk: int | None,
        tables: Tables,
        product: torch.dtype,
    ) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            learns = any(ctx.needs_input_grad)
            loss, *grads = _all_items(
                queries, targets, vectors, biases, weights, chunk, tables, product, learns
            )
        ctx.save_for_backward(*grads)
        ctx.count = tables.count
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # Those of tables are parts of a mean over processes, and of all processes' places already.
        scales = (scale, scale / ctx.count, scale / ctx.count)
        queries, vectors, biases = (
            None if grad is None else grad * scale.to(grad.dtype)
            for grad, scale in zip(ctx.saved_tensors, scales, strict=True)
        )
        return queries, None, vectors, biases, None, None, None, None


def _all_items(
    queries_MD: Tensor,
    targets_M: Tensor,
    vectors_ND: Tensor,
    biases_N: Tensor | None,
    weights_M: Tensor,
    chunk: int | None,
    tables: Tables,
    product: torch.dtype,
    learns: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the loss and, if ``learns``, its gradients by queries, vectors and biases.

    From here on M are the places of all processes, N the items of this one.
    """
    lengths = tables.lengths(len(queries_MD))
    wide = torch.promote_types(product, torch.float32)
    q_MD, v_ND = tables.gather(queries_MD.to(product), lengths), vectors_ND.to(product)
    weights_M = tables.gather(weights_M.to(wide), lengths)
    targets_M, here_M = tables.local(tables.gather(targets_M, lengths))
    b_N = None if biases_N is None else biases_N.to(wide)
    M, N = len(q_MD), len(v_ND)
    # In step with all processes, of which some have an item more.
    rows, columns = _tile(M, max(tables.lengths(N)), chunk, queries_MD.device)
    columns = min(columns, N)

    losses_M = torch.empty_like(weights_M)
    grads: list[Tensor | None] = [None, None, None]
    if learns:
        by_queries = torch.empty(q_MD.shape, dtype=wide, device=q_MD.device)
        by_vectors = torch.zeros(v_ND.shape, dtype=wide, device=q_MD.device)
        by_biases = None if b_N is None else torch.zeros_like(b_N)
        grads = [by_queries, by_vectors, by_biases]
    for first in range(0, M, rows):
        block = slice(first, first + rows)
        q_RD, t_R, w_R = q_MD[block], targets_M[block], weights_M[block]
        here_R = here_M[block]

        # e^{logit - peak} of each tile, and the sum over all. The target's logit is read off its
        # tile: computed by itself it would be rounded otherwise, and the loss could fall below 0.
        peaks_R1, sums_R, asked_R, tile = None, torch.zeros_like(w_R), None, None
        for column in range(0, N, columns):
            items = slice(column, column + columns)
            tile = _logits(q_RD, v_ND[items], b_N, items, wide)
            last = tile.shape[1] - 1
            found_R = tile.gather(1, (t_R - column).clamp(0, last)[:, None])[:, 0]
            if columns < N:
                found_R = found_R * ((t_R >= column) & (t_R <= column + last))
            asked_R = found_R if asked_R is None else asked_R + found_R
            peak_R1 = tile.amax(1, keepdim=True)
            if peaks_R1 is not None:
                peak_R1 = torch.maximum(peak_R1, peaks_R1)
                sums_R *= (peaks_R1 - peak_R1).exp_()[:, 0]
            peaks_R1 = peak_R1
            sums_R += tile.sub_(peaks_R1).exp_().sum(1)
        assert peaks_R1 is not None and asked_R is not None and tile is not None
        # Of the sum over the items of all processes, this is in the scale of its own peak.
        peaks_R = tables.max(peaks_R1[:, 0].clone())
        scales_R = (peaks_R1[:, 0] - peaks_R).exp_()
        sums_R, asked_R = tables.sum(torch.stack([sums_R * scales_R, asked_R * here_R]))
        losses_M[block] = w_R * (sums_R.log() + peaks_R - asked_R)
        if not learns:
            continue

        # The softmax is never made: its divisor and the weight are moved to the shorter factor.
        shares_R = w_R * scales_R / sums_R
        w_R = w_R * here_R
        q_shared_RD = (q_RD * shares_R[:, None]).to(product)
        sum_RD = torch.zeros_like(by_queries[block])
        for column in range(0, N, columns):
            items = slice(column, column + columns)
            if columns < N:
                tile = _logits(q_RD, v_ND[items], b_N, items, wide).sub_(peaks_R1).exp_()
            part = tile.to(product)
            sum_RD += part @ v_ND[items]
            if product == wide:
                by_vectors[items].addmm_(part.T, q_shared_RD)
            else:
                by_vectors[items].add_(part.T @ q_shared_RD)
            if by_biases is not None:
                by_biases[items].add_(shares_R @ tile)
        by_queries[block] = sum_RD * shares_R[:, None] - v_ND[t_R] * w_R[:, None]
        by_vectors.index_add_(0, t_R, (q_RD * w_R[:, None]).to(wide), alpha=-1)
        if by_biases is not None:
            by_biases.index_add_(0, t_R, w_R, alpha=-1)
    inputs = (queries_MD, vectors_ND, biases_N)
    if learns:
        grads[0] = tables.give_back(by_queries, lengths)
    by = [
        None if grad is None or given is None else grad.to(given.dtype)
        for grad, given in zip(grads, inputs, strict=True)
    ]
    return losses_M[tables.own(lengths)].sum(), by[0], by[1], by[2]


def _logits(
    q_RD: Tensor, v_CD: Tensor, b_N: Tensor | None, items: slice, wide: torch.dtype
) -> Tensor:
    """Return the logits of a tile in ``wide``, for in-place use."""
    if b_N is not None and q_RD.dtype == wide:
        return torch.addmm(b_N[items], q_RD, v_CD.T)
    logits = (q_RD @ v_CD.T).to(wide)
    return logits if b_N is None else logits.add_(b_N[items])


def _tile(M: int, N: int, chunk: int | None, device: torch.device) -> tuple[int, int]:
    """Return the places and items of one tile."""
    room = _CPU_LOGITS if device.type == "cpu" else _GPU_LOGITS
    rows = chunk or max(room // max(N, 1), _FEWEST_PLACES)
    rows = max(1, min(rows, M))
    return rows, min(N, max(room // rows, 1024)) if rows * N > 4 * room else N


# --- settings, and the loss of a batch ---


class CrossEntropySettings(Strict):
    """:func:`full_cross_entropy`; ``chunk`` is the places at once, null for a fitting number."""

    name: Literal["cross_entropy"] = "cross_entropy"
    chunk: PositiveInt | None = None


class _Sampled(Strict):
    """Settings of losses over sampled negatives."""

    sampler: SamplerSettings = UniformSettings()

    def of(self, scores: Scores, weights: Tensor, num_items: int) -> Tensor:
        """Return the loss; ``num_items`` is of those that may be drawn."""
        raise NotImplementedError


class BCESettings(_Sampled):
    """:func:`bce`."""

    name: Literal["bce"] = "bce"

    def of(self, scores: Scores, weights: Tensor, num_items: int) -> Tensor:
        return bce(scores, weights)


class RelevanceSettings(Strict):
    """:func:`relevance`: disliked events are asked for too, and are negatives."""

    name: Literal["relevance"] = "relevance"
    sampler: SamplerSettings = UniformSettings()


class GBCESettings(_Sampled):
    """:func:`gbce`; ``calibration`` is the paper's t, whose value there is 0.75."""

    name: Literal["gbce"] = "gbce"
    sampler: SamplerSettings = UniformSettings(negatives=256)
    calibration: Annotated[float, Field(ge=0, le=1)] = 0.75

    def of(self, scores: Scores, weights: Tensor, num_items: int) -> Tensor:
        rate = min(1.0, scores.negatives.shape[1] / max(1, num_items - 1))
        return gbce(scores, weights, self.calibration, rate)


class BPRSettings(_Sampled):
    """:func:`bpr`."""

    name: Literal["bpr"] = "bpr"

    def of(self, scores: Scores, weights: Tensor, num_items: int) -> Tensor:
        return bpr(scores, weights)


class BPRMaxSettings(_Sampled):
    """:func:`bpr_max`; ``regularisation`` is its λ."""

    name: Literal["bpr_max"] = "bpr_max"
    sampler: SamplerSettings = UniformSettings(negatives=256, shared=True)
    regularisation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0

    def of(self, scores: Scores, weights: Tensor, num_items: int) -> Tensor:
        return bpr_max(scores, weights, self.regularisation)


class Top1MaxSettings(_Sampled):
    """:func:`top1_max`."""

    name: Literal["top1_max"] = "top1_max"
    sampler: SamplerSettings = UniformSettings(negatives=256, shared=True)

    def of(self, scores: Scores, weights: Tensor, num_items: int) -> Tensor:
        return top1_max(scores, weights)


#: How scores are corrected for the probability q of a draw. ``logq``: ln q off all scores, the
#: asked item's too (Bengio and Senécal 2008; Yi et al. 2019 for in-batch negatives).
#: ``importance``: ln(K q) off the negatives', so that their sum estimates that over all items.
Correction = Literal["none", "logq", "importance"]


class SampledCrossEntropySettings(Strict):
    """:func:`sampled_cross_entropy` of any sampler."""

    name: Literal["sampled_cross_entropy"] = "sampled_cross_entropy"
    sampler: SamplerSettings = UniformSettings(negatives=256)
    correction: Correction = "logq"


class InBatchSoftmaxSettings(Strict):
    """:func:`sampled_cross_entropy` with all targets of the global batch as negatives."""

    name: Literal["in_batch_softmax"] = "in_batch_softmax"
    correction: Correction = "logq"


LossSettings = Annotated[
    CrossEntropySettings
    | SampledCrossEntropySettings
    | InBatchSoftmaxSettings
    | BCESettings
    | RelevanceSettings
    | GBCESettings
    | BPRSettings
    | BPRMaxSettings
    | Top1MaxSettings,
    Field(discriminator="name"),
]


class Loss(nn.Module):
    """The loss of a batch: draws negatives, scores them, leaves out collisions.

    Only the vectors of the asked items and of the negatives are read, but for catalogues so small
    that scoring all items costs less (see :func:`score`). It has no parameters;
    ``to(device)`` moves the samplers' tables.

    Parameters
    ----------
    settings
        Of the loss.
    num_items
        N.
    seed
        Of all draws.
    counts : float[N]
        How often each item is asked for in training; None where no sampler reads it.
    recommendable : bool[N]
        Items that uniform and hard negatives are of; None: all.
    tables
        How the vectors of items are held.

    Raises
    ------
    ValueError
        If the sampler wants counts and there are none, or can draw nothing.
    """

    def __init__(
        self,
        settings: LossSettings,
        num_items: int,
        seed: int,
        counts: Tensor | None = None,
        tables: Tables = WHOLE,
        recommendable: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.tables = tables
        self.num_drawable = num_items if recommendable is None else int(recommendable.sum())
        if isinstance(settings, CrossEntropySettings):
            self.sampler = None
        elif isinstance(settings, InBatchSoftmaxSettings):
            self.sampler = make_sampler(InBatchSettings(), num_items, seed, counts)
        else:
            self.sampler = make_sampler(settings.sampler, num_items, seed, counts, recommendable)

    @property
    def reads_all(self) -> bool:
        """Whether all items are scored for each place."""
        return self.sampler is None

    @property
    def reads_pool(self) -> bool:
        """Whether :attr:`Places.pool` must be the targets of the global batch."""
        if isinstance(self.sampler, Mixed):
            return isinstance(self.sampler.others, InBatch)
        return isinstance(self.sampler, InBatch)

    @property
    def reads_previous(self) -> bool:
        """Whether :attr:`Places.previous` is read."""
        return isinstance(self.sampler, Hard)

    @property
    def reads_liked(self) -> bool:
        """Whether events that were not wanted are asked for too (:attr:`Places.liked`)."""
        return isinstance(self.settings, RelevanceSettings)

    def forward(
        self,
        queries: Tensor,
        vectors: Tensor,
        biases: Tensor | None,
        weights: Tensor,
        places: Places,
    ) -> Tensor:
        """Return the summed loss of asked places.

        Parameters
        ----------
        queries : float[M, D]
            The network's states at the asked places.
        vectors : float[N, D]
            The rows of ``tables`` that this process has.
        biases : float[N]
            Or None; rows as of ``vectors``.
        weights : float[M]
            Of the places.
        places
            What is asked, and of whom.

        Returns
        -------
        float[]
            0, with gradients of 0, if M is 0.
        """
        settings = self.settings
        if isinstance(settings, CrossEntropySettings):
            return full_cross_entropy(
                queries, places.targets, vectors, biases, weights, settings.chunk, self.tables
            )
        assert self.sampler is not None
        if self.reads_pool and not len(places.pool):  # a batch that asks for nothing at all
            return score(queries, places.targets[:, None], vectors, biases, self.tables).sum()
        with torch.no_grad():
            if isinstance(settings, InBatchSoftmaxSettings):
                drawn = DrawnNegatives(places.pool, self.sampler.log_q(places.pool))
            else:
                drawn = self.sampler.draw(places)
        rows = max(1, _MOST_NUMBERS // _numbers_a_place(queries, drawn.items, vectors))
        # Processes that exchange rows take as many parts as each other: one.
        if not self.tables.whole or rows >= len(queries):
            return self._of_places(queries, vectors, biases, weights, places, drawn)
        total = queries.new_zeros(())
        for first in range(0, len(queries), rows):
            part = slice(first, first + rows)
            total = total + checkpoint(
                self._of_places,
                queries[part],
                vectors,
                biases,
                weights[part],
                places.take(part),
                drawn.take(part),
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return total

    def _of_places(
        self,
        queries: Tensor,
        vectors: Tensor,
        biases: Tensor | None,
        weights: Tensor,
        places: Places,
        drawn: DrawnNegatives,
    ) -> Tensor:
        """Return the summed loss of places with these negatives."""
        settings = self.settings
        scores = Scores(
            score(queries, places.targets[:, None], vectors, biases, self.tables)[:, 0],
            score(queries, drawn.items, vectors, biases, self.tables),
            collisions(drawn.items, places),
        )
        if isinstance(settings, SampledCrossEntropySettings | InBatchSoftmaxSettings):
            assert self.sampler is not None
            asked = self.sampler.log_q(places.targets)
            return sampled_cross_entropy(
                scores, weights, *_corrections(settings.correction, asked, drawn)
            )
        if isinstance(settings, RelevanceSettings):
            assert places.liked is not None
            return relevance(scores, weights, places.liked)
        assert isinstance(settings, _Sampled)
        return settings.of(scores, weights, self.num_drawable)


def _corrections(
    correction: Correction, asked_M: Tensor, drawn: DrawnNegatives
) -> tuple[Tensor | None, Tensor | None]:
    """Return what is taken off the scores of asked items and of negatives."""
    if correction == "none":
        return None, None
    if correction == "logq":
        return asked_M, drawn.log_q
    return None, drawn.log_q + math.log(drawn.items.shape[-1])


def score(
    queries: Tensor,
    items: Tensor,
    vectors: Tensor,
    biases: Tensor | None,
    tables: Tables = WHOLE,
) -> Tensor:
    """Return float[M, K]: ⟨q, v_i⟩ + b_i for items of each place [M, K], or of all [K].

    Where items are few and K is great, all of them are scored and K scores picked, if ``tables``,
    of which ``vectors`` and ``biases`` are the rows here, are whole.
    """
    read = tables.find(items)
    if items.dim() == 1:
        scores_MK = queries @ read(vectors).T
    elif tables.whole and _scores_all(queries, items, vectors):
        scores_MK = (queries @ vectors.T).gather(1, items)
    else:
        scores_MK = torch.bmm(read(vectors), queries.unsqueeze(2)).squeeze(2)
    return scores_MK if biases is None else scores_MK + read(biases)


def _scores_all(queries: Tensor, items: Tensor, vectors: Tensor) -> bool:
    return len(vectors) <= min(_CHEAPER, queries.shape[1]) * items.shape[1]


def _numbers_a_place(queries: Tensor, items: Tensor, vectors: Tensor) -> int:
    """Return how many numbers :func:`score` holds at once for each place."""
    if items.dim() == 1:
        return max(1, len(items))
    if _scores_all(queries, items, vectors):
        return len(vectors)
    return items.shape[1] * queries.shape[1]
