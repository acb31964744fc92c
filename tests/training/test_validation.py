"""Ranks of held-out targets, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from recs.nn.models import build
from recs.nn.network import Histories, Sizes
from recs.nn.samplers import UserPositives
from recs.training.settings import Validation
from recs.training.validation import HeldOut, metric, rank_counts

NUM_ITEMS = 4
#: Scores of the four items after each.
SCORES = torch.tensor(
    [[0.9, 0.5, 0.7, 0.1], [0.2, 0.2, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2], [math.nan] * 4]
)


def counts_of(
    last: list[int],
    targets: list[int],
    seen: list[list[int]],
    recommendable: tuple[bool, ...] = (True,) * NUM_ITEMS,
    *,
    exclude_seen: bool = True,
) -> torch.Tensor:
    network = build("fmc", Sizes(9, NUM_ITEMS, 1, 2), {"dim": NUM_ITEMS})
    weights = network.state_dict()
    weights["events.items.weight"].copy_(SCORES)
    weights["targets.weight"].copy_(torch.eye(NUM_ITEMS))
    items = torch.tensor(last)[:, None]
    nothing = torch.zeros_like(items)
    offsets = torch.tensor([0, *torch.tensor([len(s) for s in seen]).cumsum(0)])
    positives = UserPositives(offsets, torch.tensor(sum(seen, []), dtype=torch.int32))
    histories = Histories(torch.arange(len(last)), items, nothing, nothing)
    batch = HeldOut(histories, torch.tensor(targets), positives)
    return rank_counts(network, [batch], torch.tensor(recommendable), exclude_seen=exclude_seen)


def test_ranks_leave_out_what_was_seen() -> None:
    # After item 0 the order is 0, 2, 1, 3, after item 2 it is 1, 2, 3, 0.
    seen = [[0], [0], [2, 1]]
    # The third target has been seen: no list may hold it.
    assert counts_of([0, 0, 2], [1, 3, 1], seen)[:5].tolist() == [1, 0, 1, 1, 0]
    everything = counts_of([0, 0, 2], [1, 3, 1], seen, exclude_seen=False)
    assert everything[:5].tolist() == [0, 1, 0, 1, 1]


def test_items_that_may_not_be_recommended_have_no_rank() -> None:
    # After item 0 the order is 0, 2, 1, 3.
    counts = counts_of([0, 0], [1, 2], [[], []], (True, True, False, True))
    assert counts[:4].tolist() == [1, 0, 1, 0]


def test_equal_scores_count_against_the_target() -> None:
    assert counts_of([1], [0], [[]])[3] == 1


def test_rows_that_fill_up_are_not_counted() -> None:
    assert counts_of([0, 0], [0, -1], [[], []]).sum() == 1


def test_scores_that_are_no_numbers_are_never_first() -> None:
    assert counts_of([3], [0], [[]])[1] == 0


def test_metrics_are_of_the_first_k() -> None:
    counts = torch.tensor([1, 2, 0, 1, 4])  # two at rank 1, one at 3, four at 4, one beyond
    assert metric(counts, Validation(metric="hr", k=3)) == pytest.approx(3 / 8)
    expected = (2 + 1 / math.log2(4)) / 8
    assert metric(counts, Validation(metric="ndcg", k=3)) == pytest.approx(expected)
    assert metric(torch.zeros(5, dtype=torch.int64), Validation()) is None
