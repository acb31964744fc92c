"""Sharded tables: what two processes read, lose and learn is what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from recs.nn import tables as module
from recs.nn.losses import Loss, LossSettings, full_cross_entropy
from recs.nn.models import MODELS, build
from recs.nn.network import Histories, Sizes
from recs.nn.samplers import Places
from recs.nn.tables import WHOLE, ShardedTables, Tables, sharded
from recs.schema import PADDING
from recs.training.optimizer import clip_gradients, make_optimizer
from recs.training.settings import Optimizer

NUM_USERS, NUM_ITEMS, LENGTH, STEPS = 5, 21, 6, 4
#: Two processes add up in another order. In float64, for Adam makes whole steps of gradients that
#: are nothing but rounding, such as that of an attention's key bias.
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}

#: Ids that each of two processes reads: repeated ones, another shape, and none.
READS = {
    "repeated": ([[3, 3, 20], [0, PADDING, 3]], [[3, 1]]),
    "empty": ([[7, 7, 8]], [[]]),
    "padding": ([[PADDING]], [[4, PADDING]]),
}
#: Networks, losses, and whether updates are sparse.
TRAINED: dict[str, tuple[str, dict[str, Any], bool]] = {
    "full": ("sasrec", {"name": "cross_entropy"}, False),
    "biased": ("transrec", {"name": "cross_entropy", "chunk": 3}, False),
    "sampled": ("sasrec", {"name": "bce", "sampler": {"name": "uniform", "negatives": 3}}, False),
    "in_batch": ("gru4rec", {"name": "in_batch_softmax"}, False),
    "tables_alone": ("fmc", {"name": "bpr"}, False),
    "sparse": ("sasrec", {"name": "bce"}, True),
    "users": ("caser", {"name": "sampled_cross_entropy"}, True),
}


def _table() -> Tensor:
    return torch.arange(NUM_ITEMS * 2.0).reshape(NUM_ITEMS, 2).sin()


def _read(tables: ShardedTables, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is read, and the gradients of this process's rows of its squares' sum."""
    rows = _table()[tables.rank :: tables.count].clone().requires_grad_()
    found = tables.read(rows, ids)
    assert found.shape == (*ids.shape, 2)
    found.square().sum().backward()
    assert rows.grad is not None and rows.grad.is_sparse == tables.sparse
    return found.detach(), rows.grad.to_dense()


def _train(case: str, tables: Tables, rank: int, count: int) -> dict[str, Tensor]:
    """Return the losses of some steps and the weights after them, whole."""
    name, loss_settings, sparse = TRAINED[case]
    torch.manual_seed(3)
    sizes = Sizes(NUM_USERS, NUM_ITEMS, 1, LENGTH, tables)
    network = build(name, sizes, {"dim": 8, "dropout": 0.0}).double()
    shards = sharded(network)
    made = TypeAdapter(LossSettings).validate_python(loss_settings)
    loss = Loss(made, NUM_ITEMS, 1, torch.ones(NUM_ITEMS), tables)
    settings = Optimizer(rate=0.01, clip=0.5, tables="sparse" if sparse else "dense")
    optimizer = make_optimizer(settings, network)
    states: Any = _States(network)
    if count > 1 and len(shards) < len(list(network.parameters())):
        names = [f"network.{name}" for name in shards]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(states, names)
        states = DistributedDataParallel(states, broadcast_buffers=False)
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        items = torch.randint(NUM_ITEMS, (4, LENGTH), generator=generator)
        targets = torch.randint(NUM_ITEMS, (4, LENGTH), generator=generator)
        asked = torch.rand(4, LENGTH, generator=generator) < 0.7
        if step == 1:
            asked[1::2] = False  # nothing is asked of the second process
        if step == 2:
            asked[:] = False
        numbers = torch.arange(4 * LENGTH).reshape(4, LENGTH)
        own = slice(rank, None, count)
        histories = Histories(torch.arange(4)[own], items[own], items[own] * 0, items[own] * 0)
        rows, _ = torch.nonzero(asked[own], as_tuple=True)
        places = Places(
            step, numbers[own][asked[own]], rows, targets[own][asked[own]], targets[asked]
        )
        queries, vectors, biases = states(histories, asked[own])
        found = loss(queries, vectors, biases, torch.ones(len(queries)).double(), places)
        (found * count).backward()
        clip_gradients(network, shards, tables, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(tables.sum(found.detach().clone()))
    result = {"losses": torch.stack(losses)}
    for key, weight in network.state_dict().items():
        num = shards.get(key)
        result[key] = weight if num is None else torch.cat([*tables.blocks(weight, num)])
    return result


def _sure_in_bf16(tables: Tables) -> Tensor:
    """Return full cross-entropy of this process's places, each sure of its target, in bfloat16."""
    torch.manual_seed(5)
    queries, vectors = 4 * torch.randn(60, 32), torch.randn(NUM_ITEMS, 32)
    own = slice(tables.rank, None, tables.count)
    targets = (queries @ vectors.T).argmax(1)[own]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [
            full_cross_entropy(q[None], t[None], vectors[own], None, torch.ones(1), tables=tables)
            for q, t in zip(queries[own], targets, strict=True)
        ]
    return torch.stack(found)


class _States(torch.nn.Module):
    """What :class:`Loss` reads of a network, made in one module as DDP wants it."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, histories: Histories, asked: Tensor) -> tuple[Tensor, Tensor, Any]:
        network = self.network
        return network.states(histories)[asked], network.item_vectors(), network.item_biases()


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    module._SENT = 4  # so that tables are sent in blocks
    results: dict[str, Any] = {}
    for sparse in (False, True):
        tables = ShardedTables(rank, 2, sparse)
        for name, ids in READS.items():
            results[f"{name}.{sparse}"] = _read(tables, torch.tensor(ids[rank]).long())
    for case, (_, _, sparse) in TRAINED.items():
        results[case] = _train(case, ShardedTables(rank, 2, sparse), rank, 2)
    results["bf16"] = _sure_in_bf16(ShardedTables(rank, 2))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("two")
    spawn(_process, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", READS)
def test_reads_what_is_asked(of_two: list[dict[str, Any]], name: str, sparse: bool) -> None:
    table = _table().requires_grad_()
    for rank, ids in enumerate(READS[name]):
        expected = WHOLE.read(table, torch.tensor(ids).long())
        torch.testing.assert_close(of_two[rank][f"{name}.{sparse}"][0], expected.detach())
        (expected.square().sum() / 2).backward()  # gradients are the mean over processes
    for rank in range(2):
        assert table.grad is not None
        torch.testing.assert_close(of_two[rank][f"{name}.{sparse}"][1], table.grad[rank::2])


@pytest.mark.parametrize("case", TRAINED)
def test_trains_as_one_process_does(of_two: list[dict[str, Any]], case: str) -> None:
    sparse = TRAINED[case][2]
    expected = _train(case, ShardedTables(sparse=True) if sparse else WHOLE, 0, 1)
    assert expected["losses"][0] > 0 and expected["losses"][2] == 0
    for name, tensor in expected.items():
        torch.testing.assert_close(of_two[0][case][name], tensor, **CLOSE, msg=name)
    assert torch.equal(of_two[1][case]["losses"], of_two[0][case]["losses"])


def test_no_loss_is_below_zero_in_bf16(of_two: list[dict[str, Any]]) -> None:
    whole = _sure_in_bf16(WHOLE)
    for rank in range(2):
        found = of_two[rank]["bf16"]
        assert found.min() >= 0
        torch.testing.assert_close(found, whole[rank::2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("num", "dim"), [(5, 3), (16, 3), (37, 5), (100, 8)])
def test_starts_from_the_same_numbers(num: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAWN", 16)
    torch.manual_seed(1)
    whole, after = WHOLE.normal(num, dim, 0.1), torch.rand(1)
    for count in (1, 2, 3):
        for rank in range(count):
            torch.manual_seed(1)
            part = ShardedTables(rank, count).normal(num, dim, 0.1)
            assert torch.equal(part, whole[rank::count]) and torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("name", MODELS)
def test_every_network_shards_what_grows_with_items_and_users(name: str) -> None:
    sizes = Sizes(NUM_USERS + 100, NUM_ITEMS, 1, LENGTH)
    whole = build(name, sizes, {"dim": 8})
    part = build(name, sizes._replace(tables=ShardedTables(1, 2)), {"dim": 8})
    large = {key for key, p in whole.named_parameters() if len(p) in (NUM_USERS + 100, NUM_ITEMS)}
    assert set(sharded(part)) == large and not sharded(whole)
    assert len(part.item_vectors()) == NUM_ITEMS // 2
