"""Ranks of held-out targets, against values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from recs.nn.models import build
from recs.nn.network import Histories, Sizes
from recs.nn.samplers import UserPositives
from recs.nn.tables import WHOLE, ShardedTables, Tables
from recs.training.dataset import TrainingSet
from recs.training.settings import Validation
from recs.training.validation import HeldOut, metric, rank_counts
from tests.training.conftest import NUM_USERS

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
    tables: Tables = WHOLE,
) -> torch.Tensor:
    network = build("fmc", Sizes(9, NUM_ITEMS, 1, 2, tables), {"dim": NUM_ITEMS})
    weights = network.state_dict()
    weights["events.items.weight"].copy_(SCORES[tables.rank :: tables.count])
    weights["targets.weight"].copy_(torch.eye(NUM_ITEMS)[tables.rank :: tables.count])
    items = torch.tensor(last)[:, None]
    nothing = torch.zeros_like(items)
    offsets = torch.tensor([0, *torch.tensor([len(s) for s in seen]).cumsum(0)])
    positives = UserPositives(offsets, torch.tensor(sum(seen, []), dtype=torch.int32))
    histories = Histories(torch.arange(len(last)), items, nothing, nothing)
    batch = HeldOut(histories, torch.tensor(targets), positives)
    return rank_counts(network, [batch], torch.tensor(recommendable))


def test_ranks_leave_out_what_was_seen() -> None:
    # After item 0 the order is 0, 2, 1, 3, after item 2 it is 1, 2, 3, 0.
    counts = counts_of([0, 0, 2], [1, 3, 2], [[0], [0], [0, 1]])
    assert counts[:4].tolist() == [0, 1, 1, 1]


#: Two targets that were seen, and two that were not.
LAST, TARGETS, SEEN = [0, 0, 2, 2], [0, 1, 1, 3], [[0], [0, 2], [1, 2], [1, 2]]


def test_a_target_that_was_seen_has_no_rank() -> None:
    assert counts_of(LAST, TARGETS, SEEN)[:4].tolist() == [2, 2, 0, 0]
    assert counts_of(LAST, TARGETS, [[], [], [], []])[:4].tolist() == [0, 2, 0, 2]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    tables = ShardedTables(rank, 2)
    counts = counts_of(LAST[rank::2], TARGETS[rank::2], SEEN[rank::2], tables=tables)
    torch.save(counts, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_that_share_the_items_count_as_one(tmp_path: Path) -> None:
    spawn(_process, (str(tmp_path),), nprocs=2)
    of_two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(of_two[0] + of_two[1], counts_of(LAST, TARGETS, SEEN))


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
    assert metric(counts, Validation(metric="hr", k=3), given_nothing=2) == pytest.approx(3 / 10)


def test_users_without_a_history_are_counted_not_ranked(training_set: TrainingSet) -> None:
    held_out = training_set.manifest.parts["validation"]
    assert sum(file.rows for file in held_out) == NUM_USERS
    assert training_set.manifest.given_nothing == 2
