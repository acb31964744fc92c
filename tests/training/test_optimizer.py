"""Updates of tables by rows, and the norm of all gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from recs.nn.tables import ShardedTables
from recs.training.optimizer import clip_gradients, make_optimizer
from recs.training.settings import Optimizer


def test_sparse_updates_are_of_read_rows_alone() -> None:
    """In the first step those of AdamW; other rows and their moments stay as they are."""
    torch.manual_seed(0)
    tables = ShardedTables(sparse=True)
    table = tables.normal(6, 3, 1.0)
    dense = torch.nn.Parameter(table.detach().clone())
    holder = torch.nn.ParameterList([table])
    settings = Optimizer(rate=0.1, weight_decay=0.5, tables="sparse")
    optimizer = make_optimizer(settings, holder)
    adamw = torch.optim.AdamW([dense], lr=0.1, weight_decay=0.5, betas=settings.betas)
    before = table.detach().clone()
    for weight, step in ((table, optimizer), (dense, adamw)):
        found = (
            tables.read(weight, torch.tensor([4, 1, 4])) if weight is table else weight[[4, 1, 4]]
        )
        found.square().sum().backward()
        step.step()
    torch.testing.assert_close(table[[1, 4]], dense[[1, 4]])
    others = [0, 2, 3, 5]
    assert torch.equal(table[others], before[others])
    assert (optimizer.state[table]["exp_avg"][others] == 0).all()


@pytest.mark.parametrize("name", ["adam", "adagrad"])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_far_below_eps_hardly_move_a_row(name: Any, sparse: bool) -> None:
    tables = ShardedTables(sparse=sparse)
    table = tables.normal(2, 1, 1.0)
    before = table.detach().clone()
    kind: Any = "sparse" if sparse else "dense"
    settings = Optimizer(name=name, rate=0.1, weight_decay=0, eps=1e-3, tables=kind)
    optimizer = make_optimizer(settings, torch.nn.ParameterList([table]))
    gradients = torch.tensor([[1.0], [1e-6]])
    (tables.read(table, torch.arange(2)) * gradients).sum().backward()
    optimizer.step()
    moved = (table - before).detach()
    torch.testing.assert_close(moved, torch.tensor([[-0.1], [-1e-4]]), rtol=0.01, atol=1e-7)


@pytest.mark.parametrize("name, left", [("adamw", 1 - 1e-5), ("adam", 1.0), ("adagrad", 1.0)])
def test_rows_that_no_step_reads_keep_their_size_by_default(name: Any, left: float) -> None:
    table = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = make_optimizer(Optimizer(name=name, rate=1e-3), torch.nn.ParameterList([table]))
    for _ in range(100):
        table.grad = torch.zeros_like(table)
        optimizer.step()
    torch.testing.assert_close(table.detach(), torch.full((4, 2), left**100))


def test_a_weight_decay_that_is_given_is_taken_by_any_name() -> None:
    for name in ("adamw", "adam", "adagrad"):
        settings = Optimizer(name=name, weight_decay=0.5)
        optimizer = make_optimizer(settings, torch.nn.ParameterList([torch.ones(2, 2)]))
        assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_clipping_counts_all_gradients_once() -> None:
    table, other = ShardedTables(sparse=True).normal(4, 2, 1.0), torch.nn.Parameter(torch.ones(3))
    network = torch.nn.ParameterDict({"table": table, "other": other})
    tables = ShardedTables(sparse=True)
    tables.read(table, torch.tensor([1, 1])).sum().backward()
    (other * 3).sum().backward()
    clip_gradients(network, {"table"}, tables, 1.0)
    norm = math.sqrt(2 * 2**2 + 3 * 3**2)
    assert table.grad is not None and other.grad is not None
    torch.testing.assert_close(table.grad.to_dense()[1], torch.full((2,), 2 / norm))
    torch.testing.assert_close(other.grad, torch.full((3,), 3 / norm))


def test_adagrad_of_rows_does_not_decay() -> None:
    with pytest.raises(ValidationError, match="weight_decay 0"):
        Optimizer(name="adagrad", tables="sparse", weight_decay=0.01)
    table = ShardedTables(sparse=True).normal(4, 2, 1.0)
    before = table.detach().clone()
    settings = Optimizer(name="adagrad", tables="sparse")
    optimizer = make_optimizer(settings, torch.nn.ParameterList([table]))
    ShardedTables(sparse=True).read(table, torch.tensor([2])).sum().backward()
    optimizer.step()
    assert ((table != before).any(1)).tolist() == [False, False, True, False]
