"""Expectations over random orders of equal scores: by hand, and against all orders there are."""

from __future__ import annotations

import doctest
from itertools import permutations
from math import comb, log2

import numpy as np
import pytest

from recs.evaluation import ties
from recs.evaluation.metrics import user_metrics
from recs.schema import METRICS_OF_RANKS

INF = float("inf")


def _expected(
    scores: list[float], num_targets: int, counted: list[bool], k: float
) -> dict[str, float]:
    """Return the metrics of a list whose first items are the targets."""
    every = np.array(scores)
    ranks = [1 + int((every > s).sum()) for s in scores[:num_targets]]
    same = [int((every == s).sum()) - 1 for s in scores[:num_targets]]
    return _of_ranks(ranks, same, len(scores), counted, k)


def _of_ranks(
    ranks: list[int], same: list[int], candidates: int, counted: list[bool], k: float
) -> dict[str, float]:
    rows = user_metrics(
        np.array([0, len(ranks)]),
        np.array(ranks),
        np.array(same),
        np.full(len(ranks), candidates),
        np.array([counted]),
        np.array([k]),
        True,
    )
    return dict(zip((*METRICS_OF_RANKS, "auc"), rows[0, 0], strict=True))


def _oracle(
    scores: list[float], num_targets: int, counted: list[bool], k: float
) -> dict[str, float]:
    """Mean of the metrics over all orders of the list that respect the scores."""
    rows = []
    for order in permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in zip(order[:-1], order[1:], strict=True)):
            continue
        hits = np.array([item < num_targets and counted[item] for item in order])
        others = np.array([item >= num_targets for item in order])
        positions = np.flatnonzero(hits) + 1
        inside = positions[positions <= k]
        total = sum(counted)
        length = min(k, len(scores))
        gains = [1 / log2(1 + p) for p in inside]
        ideal = sum(1 / log2(1 + j) for j in range(1, int(min(total, k)) + 1))
        precisions = [(j + 1) / p for j, p in enumerate(inside)]
        below = [others[p:].sum() / max(others.sum(), 1) for p in positions]
        rows.append(
            {
                "hr": float(inside.size > 0),
                "recall": inside.size / total,
                "precision": inside.size / (k if k < INF else length),
                "ndcg": sum(gains) / ideal,
                "map": sum(precisions) / min(total, k),
                "mrr": 1 / inside[0] if inside.size else 0.0,
                "auc": sum(below) / total,
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def test_docstring_examples() -> None:
    assert doctest.testmod(ties) == (0, 5)


def test_a_pair_at_the_top() -> None:
    found = _expected([1, 1, 0, 0], 1, [True], 1)
    assert found == pytest.approx(
        {
            "hr": 0.5,
            "recall": 0.5,
            "precision": 0.5,
            "ndcg": 0.5,
            "map": 0.5,
            "mrr": 0.5,
            "auc": 2.5 / 3,
        }
    )
    assert _expected([1, 1, 0, 0], 1, [True], INF)["mrr"] == pytest.approx((1 + 1 / 2) / 2)


def test_a_pair_at_the_end_of_the_list() -> None:
    found = _of_ranks([10], [1], 101, [True], 10)
    assert found["hr"] == found["recall"] == 0.5
    assert found["ndcg"] == pytest.approx(0.5 / log2(11))
    assert _of_ranks([10], [1], 101, [True], 9)["hr"] == 0


def test_two_targets_among_three() -> None:
    # Places 1 and 2, 1 and 3, or 2 and 3.
    found = _expected([1, 1, 1], 2, [True, True], 1)
    assert found["hr"] == pytest.approx(2 / 3)
    whole = _expected([1, 1, 1], 2, [True, True], INF)
    assert whole["mrr"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert whole["map"] == pytest.approx(((1 + 1) + (1 + 2 / 3) + (1 / 2 + 2 / 3)) / 2 / 3)


@pytest.mark.parametrize(
    "scores, num_targets, counted",
    [
        ([1, 1, 1, 1, 1, 1], 1, [True]),
        ([1, 1, 1, 1, 1, 1], 3, [True, True, True]),
        ([1, 1, 1, 1, 1, 1], 3, [True, False, True]),
        ([1, 0, 2, 1, 1, 0, 0], 2, [True, True]),  # each in a tie group of its own
        ([1, 1, 0, 2, 1, 0, 0], 3, [True, True, True]),
        ([1, 1, 0, 2, 1, 0, 0], 3, [True, False, True]),
        ([2, 1, 1, 1, 1, 0, 0], 4, [True, True, True, False]),
        ([2, 1, 1, 1, 1, 0, 0], 4, [False, True, True, False]),
        ([0, 0, 2, 2, 1, 0], 2, [True, True]),
        ([3, 2, 1, 0], 2, [True, True]),  # no ties
    ],
)
@pytest.mark.parametrize("k", [1, 2, 3, 5, INF])
def test_mean_over_all_orders(
    scores: list[float], num_targets: int, counted: list[bool], k: float
) -> None:
    found = _expected(scores, num_targets, counted, k)
    assert found == pytest.approx(_oracle(scores, num_targets, counted, k))


@pytest.mark.parametrize("above", [0, 3, 500, 5000])
@pytest.mark.parametrize("targets", [1, 2, 3, 40, 300, 600])
@pytest.mark.parametrize("k", [10, 600, INF])
def test_large_tie_groups(above: int, targets: int, k: float) -> None:
    places = 600
    counted = [True] * targets
    found = _of_ranks([above + 1] * targets, [places - 1] * targets, 6000, counted, k)
    inside = [i for i in range(1, places + 1) if above + i <= k]
    first = [comb(places - i, targets - 1) / comb(places, targets) for i in inside]
    share = targets / places
    further = [(i - 1) * (targets - 1) / (places - 1) for i in inside]
    assert found["hr"] == pytest.approx(sum(first))
    assert found["recall"] == pytest.approx(len(inside) / places)
    mrr = sum(p / (above + i) for p, i in zip(first, inside, strict=True))
    assert found["mrr"] == pytest.approx(mrr, abs=1e-10)
    gain = share * sum(1 / log2(1 + above + i) for i in inside)
    ideal = sum(1 / log2(1 + j) for j in range(1, int(min(targets, k)) + 1))
    assert found["ndcg"] == pytest.approx(gain / ideal)
    total = sum((1 + f) / (above + i) for f, i in zip(further, inside, strict=True))
    assert found["map"] == pytest.approx(share * total / min(targets, k))


def test_most_of_a_large_catalogue_is_tied() -> None:
    # Of a million items 1,000 are scored; two of the 999,000 others are targets.
    found = _of_ranks([1001, 1001], [998_999] * 2, 1_000_000, [True, True], INF)
    places, first = 999_000, np.arange(1, 999_000)
    chance = 2 * (places - first) / (places * (places - 1.0))
    assert found["mrr"] == pytest.approx((chance / (1000 + first)).sum(), rel=1e-9)
    assert found["auc"] == pytest.approx(1 - (1000 + 998_998 / 2) / 999_998)
