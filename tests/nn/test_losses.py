"""Losses against their formulas, written out; full cross-entropy against torch's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from recs.nn import losses
from recs.nn.losses import (
    Loss,
    LossSettings,
    Scores,
    bce,
    bpr,
    bpr_max,
    full_cross_entropy,
    gbce,
    relevance,
    sampled_cross_entropy,
    top1_max,
)
from recs.nn.samplers import Places, Previous, UserPositives

NUM_ITEMS = 30


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


#: Each loss, and the loss of one place written with probabilities: r⁺ and negatives that count.
ORACLES = {
    "bce": (bce, lambda p, n: -np.log(_sigmoid(p)) - np.log(1 - _sigmoid(n)).sum()),
    "gbce": (
        lambda scores, weights: gbce(scores, weights, calibration=0.75, rate=0.25),
        # β = α (t (1 − 1/α) + 1/α) = .25 (.75 (−3) + 4) = .4375; of 4 negatives drawn
        lambda p, n: (-np.log(_sigmoid(p) ** 0.4375) - np.log(1 - _sigmoid(n)).sum()) / 5,
    ),
    "sampled_cross_entropy": (
        sampled_cross_entropy,
        lambda p, n: -np.log(_softmax(np.append(p, n))[0]),
    ),
    "bpr": (bpr, lambda p, n: -np.log(_sigmoid(p - n)).mean() if len(n) else 0.0),
    "bpr_max": (
        lambda scores, weights: bpr_max(scores, weights, 0.3),
        lambda p, n: (
            -np.log((_softmax(n) * _sigmoid(p - n)).sum()) + 0.3 * (_softmax(n) * n**2).sum()
            if len(n)
            else 0.0
        ),
    ),
    "top1_max": (
        top1_max,
        lambda p, n: (_softmax(n) * (_sigmoid(n - p) + _sigmoid(n**2))).sum() if len(n) else 0.0,
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_sampled_losses_equal_their_formulas(name: str) -> None:
    loss, oracle = ORACLES[name]
    generator = torch.Generator().manual_seed(0)
    positives = torch.randn(6, generator=generator, requires_grad=True)
    negatives = torch.randn(6, 4, generator=generator, requires_grad=True)
    excluded = torch.rand(6, 4, generator=generator) < 0.4
    excluded[0], excluded[1] = True, False
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 3.0])
    found = loss(Scores(positives, negatives, excluded), weights)
    expected = sum(
        weight * oracle(np.float64(p), n[~out])
        for weight, p, n, out in zip(
            weights.tolist(),
            positives.detach().double().numpy(),
            negatives.detach().double().numpy(),
            excluded.numpy(),
            strict=True,
        )
    )
    assert found.item() == pytest.approx(expected, rel=1e-5)

    found.backward()
    assert positives.grad is not None and negatives.grad is not None
    assert positives.grad.isfinite().all()
    assert (negatives.grad[excluded] == 0).all()
    assert (negatives.grad[~excluded & (weights > 0)[:, None]] != 0).all()
    assert positives.grad[3] == 0 and (negatives.grad[3] == 0).all()


@pytest.mark.parametrize("name", ORACLES)
def test_gradients_of_sampled_losses(name: str) -> None:
    loss = ORACLES[name][0]
    generator = torch.Generator().manual_seed(1)
    positives = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    negatives = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    excluded = torch.tensor([[True] * 4, [True, False, False, True], [False] * 4])
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda p, n: loss(Scores(p, n, excluded), weights), (positives, negatives)
    )


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("size", [80.0, 3e4])
def test_great_scores_stay_finite(name: str, size: float) -> None:
    loss = ORACLES[name][0]
    positives = torch.tensor([size, -size], requires_grad=True)
    negatives = torch.tensor([[-size, size], [size, -size]], requires_grad=True)
    found = loss(Scores(positives, negatives), torch.ones(2))
    found.backward()
    assert found.isfinite() and positives.grad is not None and negatives.grad is not None
    assert positives.grad.isfinite().all() and negatives.grad.isfinite().all()


def test_worked_by_hand() -> None:
    zero = Scores(torch.zeros(1), torch.zeros(1, 3))
    one = torch.ones(1)
    ln2 = math.log(2)
    assert bce(zero, one).item() == pytest.approx(4 * ln2)
    assert gbce(zero, one, 0.0, 0.1).item() == pytest.approx(ln2)  # (1 + 3) ln 2 / 4
    assert gbce(zero, one, 1.0, 0.1).item() == pytest.approx(3.1 * ln2 / 4)  # β = α
    assert sampled_cross_entropy(zero, one).item() == pytest.approx(2 * ln2)
    assert bpr(zero, one).item() == pytest.approx(ln2)
    assert bpr_max(zero, one, 1.0).item() == pytest.approx(ln2)
    assert top1_max(zero, one).item() == pytest.approx(1.0)  # ½ + ½


def test_disliked_items_are_negatives_and_draw_none() -> None:
    scores = Scores(torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]]))
    found = relevance(scores, torch.tensor([1.0, 10.0]), torch.tensor([True, False]))
    liked = math.log1p(math.exp(-1.0)) + math.log1p(math.exp(3.0))
    disliked = math.log1p(math.exp(2.0))
    assert found.item() == pytest.approx(liked + 10 * disliked, rel=1e-5)


def test_log_q_makes_frequent_negatives_light() -> None:
    """Of scores that are ln q, nothing is left: ln of the number of candidates."""
    log_q = torch.tensor([0.5, 0.25, 0.125]).log()
    scores = Scores(torch.tensor([0.1]).log(), log_q[None])
    found = sampled_cross_entropy(scores, torch.ones(1), torch.tensor([0.1]).log(), log_q)
    assert found.item() == pytest.approx(math.log(4))


def test_importance_estimates_full_cross_entropy() -> None:
    """With negatives in proportion to q, e^r / (K q) sums to about the sum over all items."""
    torch.manual_seed(0)
    queries, vectors = torch.randn(8, 4), torch.randn(NUM_ITEMS, 4)
    targets = torch.arange(8)
    counts = torch.arange(NUM_ITEMS) + 1.0
    places = Places(0, torch.arange(8), torch.arange(8), targets, targets)
    loss = _loss(
        "sampled_cross_entropy",
        counts,
        correction="importance",
        sampler={"name": "popularity", "negatives": 20_000, "exponent": 0.5},
    )
    found = loss(queries, vectors, None, torch.ones(8), places)
    expected = F.cross_entropy(queries @ vectors.T, targets, reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=0.02)


# --- full cross-entropy ---


def _full(seed: int, dtype: torch.dtype, biased: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(23, 8), (NUM_ITEMS, 8), (NUM_ITEMS,)]
    parts = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes[: 3 if biased else 2]
    ]
    targets = torch.randint(NUM_ITEMS, (23,), generator=generator)
    weights = torch.rand(23, generator=generator, dtype=torch.float64).to(dtype)
    weights[4] = 0
    return parts, targets, weights


def _plain(parts: list[Tensor], targets: Tensor, weights: Tensor) -> Tensor:
    logits = parts[0] @ parts[1].T + (parts[2] if len(parts) > 2 else 0.0)
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 23, 100, None])
@pytest.mark.parametrize("cut_items", [False, True])
def test_chunked_equals_plain(
    biased: bool, chunk: int | None, cut_items: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cut_items:
        monkeypatch.setattr(losses, "_tile", lambda M, N, chunk, device: (chunk or 7, 8))
    parts, targets, weights = _full(0, torch.float64, biased)
    expected = torch.autograd.grad(3 * _plain(parts, targets, weights), parts)
    biases = parts[2] if biased else None
    loss = full_cross_entropy(parts[0], targets, parts[1], biases, weights, chunk)
    torch.testing.assert_close(loss, _plain(parts, targets, weights))
    for found, right in zip(torch.autograd.grad(3 * loss, parts), expected, strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_close_to_float32(dtype: torch.dtype) -> None:
    parts, targets, weights = _full(1, torch.float32, True)
    expected = _plain(parts, targets, weights)
    grads = torch.autograd.grad(expected, parts)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = full_cross_entropy(parts[0], targets, parts[1], parts[2], weights, 7)
    assert loss.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    for found, right in zip(torch.autograd.grad(loss, parts), grads, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, right, rtol=0, atol=tolerance * right.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("cut_items", [False, True])
def test_no_loss_is_below_zero(
    dtype: torch.dtype, biased: bool, cut_items: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of places that are sure of their target, whose logit is rounded as the others are."""
    if cut_items:
        monkeypatch.setattr(losses, "_tile", lambda M, N, chunk, device: (5, 8))
    torch.manual_seed(0)
    queries, vectors = 4 * torch.randn(200, 64), torch.randn(NUM_ITEMS, 64)
    biases = torch.randn(NUM_ITEMS) if biased else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = (queries @ vectors.T).float() + (0.0 if biases is None else biases)
        targets = logits.argmax(1)
        found = [
            full_cross_entropy(queries[n, None], targets[n, None], vectors, biases, torch.ones(1))
            for n in range(len(queries))
        ]
    assert torch.stack(found).min() >= 0
    plain = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(torch.stack(found), plain, rtol=1e-3, atol=1e-4)


def test_great_logits_and_no_places() -> None:
    vectors = torch.eye(4, requires_grad=True)
    queries = 1e4 * torch.eye(4)[:2].clone().requires_grad_()
    loss = full_cross_entropy(queries, torch.tensor([0, 3]), vectors, None, torch.ones(2))
    assert loss.item() == pytest.approx(1e4)
    (grad,) = torch.autograd.grad(loss, vectors)
    assert grad.isfinite().all()
    empty = full_cross_entropy(queries[:0], torch.tensor([]).long(), vectors, None, torch.ones(0))
    assert empty.item() == 0
    assert (torch.autograd.grad(empty, vectors)[0] == 0).all()


def test_without_gradients_none_are_computed() -> None:
    parts, targets, weights = _full(2, torch.float32, True)
    with torch.no_grad():
        loss = full_cross_entropy(parts[0], targets, parts[1], parts[2], weights)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, _plain(parts, targets, weights))


# --- the loss of a batch ---


def _loss(name: str, counts: Tensor | None = None, seed: int = 5, **settings: Any) -> Loss:
    adapter: TypeAdapter[LossSettings] = TypeAdapter(LossSettings)
    return Loss(adapter.validate_python({"name": name} | settings), NUM_ITEMS, seed, counts)


LOSSES: list[dict[str, Any]] = [
    {"name": "cross_entropy"},
    {"name": "in_batch_softmax"},
    *(
        {"name": name, "sampler": sampler}
        for name in (
            "bce",
            "relevance",
            "gbce",
            "bpr",
            "bpr_max",
            "top1_max",
            "sampled_cross_entropy",
        )
        for sampler in (
            {"name": "uniform", "negatives": 5},
            {"name": "popularity", "negatives": 5, "shared": True},
            {"name": "mixed", "negatives": 5, "others": "in_batch"},
            {"name": "hard", "negatives": 3, "top": 4},
        )
    ),
]


def _batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Places]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(24, 6, generator=generator)
    vectors = torch.randn(NUM_ITEMS, 6, generator=generator)
    biases = torch.randn(NUM_ITEMS, generator=generator)
    weights = torch.rand(24, generator=generator)
    targets = torch.randint(NUM_ITEMS, (24,), generator=generator)
    sets = [{1, 2, 3}, set(), set(range(10, 20)), {29}]
    items = torch.tensor([item for row in sets for item in sorted(row)], dtype=torch.int32)
    positives = UserPositives(torch.tensor([0, 3, 3, 13, 14]), items)
    previous = Previous(queries + 0.1, vectors + 0.1, biases)
    owners = torch.arange(24) % 4
    return (
        queries.requires_grad_(),
        vectors.requires_grad_(),
        biases.requires_grad_(),
        weights,
        Places(9, torch.arange(24), owners, targets, targets, positives, previous, owners != 1),
    )


@pytest.mark.parametrize("settings", LOSSES)
def test_ranks_sum_to_the_whole(settings: dict[str, Any]) -> None:
    """Also that a rank of which nothing is asked adds zeros, to every gradient."""
    counts = torch.ones(NUM_ITEMS)
    loss = _loss(counts=counts, **settings)
    queries, vectors, biases, weights, places = _batch()
    assert places.previous is not None and places.liked is not None
    whole = loss(queries, vectors, biases, weights, places)
    expected = torch.autograd.grad(whole, (queries, vectors, biases))
    total = torch.zeros(())
    for rows in (torch.arange(0, 24, 2), torch.arange(1, 24, 2), torch.arange(0)):
        part = places._replace(
            numbers=places.numbers[rows],
            owners=places.owners[rows],
            targets=places.targets[rows],
            previous=places.previous._replace(queries=places.previous.queries[rows]),
            liked=places.liked[rows],
        )
        total = total + loss(queries[rows], vectors, biases, weights[rows], part)
    torch.testing.assert_close(total, whole)
    for found, right in zip(
        torch.autograd.grad(total, (queries, vectors, biases)), expected, strict=True
    ):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("settings", LOSSES)
def test_weight_zero_contributes_nothing(settings: dict[str, Any]) -> None:
    loss = _loss(counts=torch.ones(NUM_ITEMS), **settings)
    queries, vectors, biases, _, places = _batch()
    found = loss(queries, vectors, biases, torch.zeros(24), places)
    assert found.item() == 0
    grads = torch.autograd.grad(found, (queries, vectors, biases))
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("settings", LOSSES)
def test_losses_are_float32_under_autocast(settings: dict[str, Any]) -> None:
    loss = _loss(counts=torch.ones(NUM_ITEMS), **settings)
    queries, vectors, biases, weights, places = _batch()
    expected = loss(queries, vectors, biases, weights, places)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(queries, vectors, biases, weights, places)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.05)


@pytest.mark.parametrize("settings", LOSSES)
def test_places_in_parts_make_the_loss_of_the_whole(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = _loss(counts=torch.arange(1.0, NUM_ITEMS + 1), **settings)
    *inputs, weights, places = _batch()
    found = []
    for numbers in (2**28, 100):
        monkeypatch.setattr(losses, "_MOST_NUMBERS", numbers)
        value = loss(*inputs, weights, places)
        found.append((value, *torch.autograd.grad(value, inputs)))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("few", [True, False])
def test_scores_of_items(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal whether all items are scored or those asked for alone."""
    monkeypatch.setattr(losses, "_CHEAPER", 2**20 if few else 0)
    queries, vectors, biases, _, places = _batch()
    items = torch.stack([places.targets, places.targets.flip(0)], dim=1)
    found = losses.score(queries, items, vectors, biases)
    expected = (queries[:, None] * vectors[items]).sum(2) + biases[items]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        losses.score(queries, items[0], vectors, None)[3, 0], queries[3] @ vectors[items[0, 0]]
    )
    grads = torch.autograd.grad(found.square().sum(), (queries, vectors, biases))
    plain = torch.autograd.grad(expected.square().sum(), (queries, vectors, biases))
    for grad, right in zip(grads, plain, strict=True):
        torch.testing.assert_close(grad, right)


def test_in_batch_softmax_leaves_out_positives_and_corrects() -> None:
    counts = torch.arange(NUM_ITEMS) + 1.0
    queries, vectors, biases, weights, places = _batch()
    sets = [{1, 2, 3}, set(), set(range(10, 20)), {29}]
    logits = (queries @ vectors.T + biases - (counts / counts.sum()).log()).detach().double()
    expected = 0.0
    for m, target in enumerate(places.targets.tolist()):
        barred = sets[m % 4] | {target}
        others = [item for item in places.pool.tolist() if item not in barred]
        row = logits[m][[target, *others]]
        expected += weights[m].item() * (row.logsumexp(0) - row[0]).item()
    found = _loss("in_batch_softmax", counts)(queries, vectors, biases, weights, places)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_positives_of_the_user_are_no_negatives() -> None:
    """A user who wants all items has no negatives: only the asked item is learned."""
    loss = _loss("bce", sampler={"name": "uniform", "negatives": 9})
    queries, vectors, _, weights, places = _batch()
    everything = torch.arange(NUM_ITEMS, dtype=torch.int32).repeat(4)
    places = places._replace(positives=UserPositives(torch.arange(5) * NUM_ITEMS, everything))
    found = loss(queries, vectors, None, weights, places)
    asked = (queries * vectors[places.targets]).sum(1)
    torch.testing.assert_close(found, (weights * F.softplus(-asked)).sum())
