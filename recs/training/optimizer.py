"""How weights are updated: dense, or of tables only the rows that a step has read."""

from __future__ import annotations

import math
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
        {
            "params": [p for p in parameters if p.dim() > 1],
            "weight_decay": settings.effective_weight_decay,
        },
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "adagrad":
        return torch.optim.Adagrad(groups, lr=settings.rate, eps=settings.eps)
    # One kernel for all parameters: on small networks most of a step is the optimizer otherwise.
    return RowAdam(
        groups,
        lr=settings.rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
        decoupled_weight_decay=settings.name == "adamw",
    )


def rate_factor(settings: Optimizer, update: int, total: int) -> float:
    """Return the share of the learning rate at an update of ``total``.

    >>> rate_factor(Optimizer(warm_up_steps=4, decay="linear"), 1, 10)
    0.5
    """
    if update < settings.warm_up_steps:
        return (update + 1) / settings.warm_up_steps
    left = (update - settings.warm_up_steps) / max(1, total - settings.warm_up_steps)
    if settings.decay == "linear":
        return max(0.0, 1 - left)
    if settings.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, left)))
    return 1.0


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


def state_tensors(
    optimizer: torch.optim.Optimizer, network: nn.Module
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the optimizer's tensors, by ``parameter/name``, and its groups."""
    names, state = _names(optimizer, network), optimizer.state_dict()
    tensors = {
        f"{names[number]}/{name}": value
        for number, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]


def load_state(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    tensors: dict[str, Tensor],
    groups: list[dict[str, Any]],
) -> None:
    """Give an optimizer what :func:`state_tensors` returned of one."""
    numbers = {name: number for number, name in enumerate(_names(optimizer, network))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, _, name = key.partition("/")
        state.setdefault(numbers[parameter], {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _names(optimizer: torch.optim.Optimizer, network: nn.Module) -> list[str]:
    """Return the names of parameters, in the order of the optimizer's numbers of them."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
