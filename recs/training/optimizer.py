"""How weights are updated: dense, or of tables only the rows that a step has read."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from recs.nn.tables import Tables
from recs.training.settings import Optimizer


class RowAdam(torch.optim.Adam):
    """Adam or AdamW that of a parameter with a sparse gradient updates only the rows that it has.

    A lazy Adam, as :class:`torch.optim.SparseAdam` is, but with weight decay, dense parameters
    beside sparse ones, and one fused kernel. It is not Adam: a row that a step does not read keeps
    its moments and its value, where Adam would decay the moments, move the row by them and shrink
    it by the weight decay. The correction of the moments' bias counts all steps, not the row's.

    A step costs time in the rows that were read, U·D, not N·D; the moments take the same memory.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make an update; sparse gradients are taken off their parameters."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    self._update_rows(table, group)
                    table.grad = None  # which is what Adam passes over
        return super().step(closure)

    @torch.no_grad()
    def _update_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros((), device=table.device)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(table) for _ in range(2))
        assert table.grad is not None
        grad = table.grad.coalesce()
        (rows,) = grad.indices()
        wholes = (table, state["exp_avg"], state["exp_avg_sq"])
        weight, mean, square = (whole.index_select(0, rows) for whole in wholes)
        beta1, beta2 = group["betas"]
        adam(
            [weight],
            [grad.values()],
            [mean],
            [square],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=group["decoupled_weight_decay"],
        )
        for whole, part in zip(wholes, (weight, mean, square), strict=True):
            whole.index_copy_(0, rows, part)


def make_optimizer(settings: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters; vectors and biases are not decayed."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "adagrad":
        return torch.optim.Adagrad(groups, lr=settings.rate)
    # One kernel for all parameters: on small networks most of a step is the optimizer otherwise.
    return RowAdam(
        groups,
        lr=settings.rate,
        betas=settings.betas,
        fused=True,
        decoupled_weight_decay=settings.name == "adamw",
    )


def clip_gradients(network: nn.Module, shards: Container[str], tables: Tables, norm: float) -> None:
    """Scale all gradients so that their norm together is at most ``norm``.

    Parameters
    ----------
    shards
        Names of the parameters whose rows ``tables`` shards: their squares are summed over all
        processes. All others are the same on each.
    """
    rows: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in network.named_parameters():
        grad = parameter.grad
        if grad is None:
            continue
        if grad.is_sparse:
            parameter.grad = grad = grad.coalesce()
            grad = grad.values()  # which shares memory with it
        (rows if name in shards else others).append(grad)
    of_rows = tables.sum(nn.utils.get_total_norm(rows).square()).sqrt()
    total = torch.hypot(nn.utils.get_total_norm(others), of_rows)
    scale = torch.clamp(norm / (total + 1e-6), max=1.0)
    for grad in (*rows, *others):
        grad.mul_(scale.to(grad.device))
