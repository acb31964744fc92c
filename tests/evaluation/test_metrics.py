"""Metrics by hand, with ties against the model, and a plain NumPy oracle that ranks real lists."""

from __future__ import annotations

import doctest
from math import log2

import numpy as np
import pytest

from recs.evaluation import metrics
from recs.evaluation.metrics import TIES, user_metrics
from recs.schema import METRICS_OF_RANKS

INF = float("inf")


def _user(
    ranks: list[int], ties: list[int], candidates: int, k: float = INF, how: str = "against"
) -> dict[str, float]:
    return _measured(ranks, ties, candidates, [True] * len(ranks), k, how)


def _measured(
    ranks: list[int],
    ties: list[int],
    candidates: int,
    counted: list[bool],
    k: float = INF,
    how: str = "against",
) -> dict[str, float]:
    place, same = np.array(ranks, np.int64), np.array(ties, np.int64)
    every = np.full(len(ranks), candidates)
    offsets = np.array([0, len(ranks)])
    only = np.array([counted])
    rows = user_metrics(offsets, place, same, every, only, np.array([k]), how == "random")
    return dict(zip((*METRICS_OF_RANKS, "auc"), rows[0, 0], strict=True))


def test_docstring_examples() -> None:
    assert doctest.testmod(metrics) == (0, 8)


def test_one_target() -> None:
    found = _user([4], [0], 101, k=10)
    assert found == pytest.approx(
        {
            "hr": 1,
            "recall": 1,
            "precision": 1 / 10,
            "ndcg": 1 / log2(5),
            "map": 1 / 4,
            "mrr": 1 / 4,
            "auc": 97 / 100,
        }
    )
    missed = _user([4], [0], 101, k=3)
    assert missed.pop("auc") == pytest.approx(0.97)
    assert set(missed.values()) == {0}


def test_several_targets() -> None:
    # Places 2, 3 and 7 of 10, one more target was not ranked: T = 4.
    found = _user([7, 2, 0, 3], [0, 0, 0, 0], 10, k=5)
    ideal = sum(1 / log2(1 + j) for j in range(1, 5))
    assert found == pytest.approx(
        {
            "hr": 1,
            "recall": 2 / 4,
            "precision": 2 / 5,
            "ndcg": (1 / log2(3) + 1 / log2(4)) / ideal,
            "map": (1 / 2 + 2 / 3) / 4,
            "mrr": 1 / 2,
            # Of 7 others, 1, 1 and 4 come before.
            "auc": (6 / 7 + 6 / 7 + 3 / 7 + 0) / 4,
        }
    )
    whole = _user([7, 2, 0, 3], [0, 0, 0, 0], 10)
    assert whole["precision"] == pytest.approx(3 / 10)
    assert whole["recall"] == pytest.approx(3 / 4)
    assert whole["map"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 7) / 4)
    # A list shorter than the targets is ideal when it holds nothing else.
    assert _user([1, 2, 3], [0, 0, 0], 10, k=2)["ndcg"] == pytest.approx(1)
    assert _user([1, 2, 3], [0, 0, 0], 10, k=2)["map"] == pytest.approx(1)


def test_ties_count_against_the_model() -> None:
    # Five candidates score the same as the target and nothing above: places 1 to 6.
    assert _user([1], [5], 6, k=5)["hr"] == 0
    assert _user([1], [5], 6)["mrr"] == pytest.approx(1 / 6)
    assert _user([1], [5], 6)["auc"] == 0


@pytest.mark.parametrize("how", TIES)
def test_targets_tied_with_each_other_alone_are_no_ties(how: str) -> None:
    assert _user([1, 1, 1], [2, 2, 2], 9, k=3, how=how)["precision"] == 1
    assert _user([1, 1, 1], [2, 2, 2], 9, how=how)["auc"] == 1


def test_nothing_ranked_is_zero() -> None:
    assert set(_user([0, 0], [0, 0], 9).values()) == {0}


@pytest.mark.parametrize("seed", range(8))
def test_against_a_list_in_plain_numpy(seed: int) -> None:
    random = np.random.default_rng(seed)
    num_candidates, num_targets, k = 12, 4, 5
    scores = random.integers(0, 4, num_candidates).astype(float)
    target = np.arange(num_candidates) < num_targets
    ranks = [1 + int((scores > s).sum()) for s in scores[:num_targets]]
    ties = [int((scores == s).sum()) - 1 for s in scores[:num_targets]]
    found = _user(ranks, ties, num_candidates, k)

    # The list with ties against the model: others before targets of the same score.
    hits = target[np.lexsort((target, -scores))]
    gains = hits / np.log2(np.arange(num_candidates) + 2)
    precisions = np.cumsum(hits) / np.arange(1, num_candidates + 1)
    first = int(np.argmax(hits))
    others = scores[~target]
    assert found == pytest.approx(
        {
            "hr": float(hits[:k].any()),
            "recall": hits[:k].sum() / num_targets,
            "precision": hits[:k].mean(),
            "ndcg": gains[:k].sum() / sum(1 / log2(j + 2) for j in range(num_targets)),
            "map": (precisions * hits)[:k].sum() / num_targets,
            "mrr": 1 / (first + 1) if first < k else 0,
            "auc": np.mean(scores[target][:, None] > others),
        }
    )


def test_only_counted_targets_are_measured_but_all_take_places() -> None:
    found = _measured([1, 2, 5], [0, 0, 0], 8, [False, True, True], k=3)
    assert found["mrr"] == pytest.approx(1 / 2)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["auc"] == pytest.approx((5 / 5 + 3 / 5) / 2)


@pytest.mark.parametrize("place", range(3))
def test_of_equal_targets_those_that_are_not_counted_come_first(place: int) -> None:
    found = _measured([3, 3, 3], [2, 2, 2], 8, [n == place for n in range(3)])
    assert found["mrr"] == pytest.approx(1 / 5)


def test_selections_are_measured_as_each_alone() -> None:
    offsets, ranks, ties = np.array([0, 2, 3]), np.array([4, 1, 2]), np.array([1, 0, 3])
    candidates, ks = np.full(3, 9), np.array([2, INF])
    selections = np.array([[True, True, True], [True, False, False], [False, True, True]])
    for random in (False, True):
        found = user_metrics(offsets, ranks, ties, candidates, selections, ks, random)
        assert found.shape == (2, 3, 13)
        for s in range(3):
            one = selections[s : s + 1]
            alone = user_metrics(offsets, ranks, ties, candidates, one, ks, random)
            np.testing.assert_array_equal(found[:, s], alone[:, 0])
    assert not found[1, 1].any()
