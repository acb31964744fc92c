"""Contract of the samplers on the device, and of collisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from recs.nn.samplers import (
    Places,
    Previous,
    Sampler,
    SamplerSettings,
    UserPositives,
    collides,
    collisions,
    hard_candidates,
    make_sampler,
    random_bits,
)
from recs.sampling.hashing import TRAINING_NEGATIVES, hash_bits, hash_stream

NUM_ITEMS = 20
COUNTS = torch.arange(NUM_ITEMS) % 5 * 1.0  # every fifth item is never asked for
ALL: list[dict[str, Any]] = [
    {"name": "uniform"},
    {"name": "popularity", "exponent": 0.5},
    {"name": "in_batch"},
    {"name": "mixed", "uniform": 0.25},
    {"name": "mixed", "uniform": 0.25, "others": "in_batch"},
]


def _sampler(seed: int = 7, **settings: Any) -> Sampler:
    adapter: TypeAdapter[SamplerSettings] = TypeAdapter(SamplerSettings)
    return make_sampler(adapter.validate_python(settings), NUM_ITEMS, seed, COUNTS)


@pytest.mark.parametrize("settings", [{"name": "uniform"}, {"name": "hard", "top": 3}])
def test_only_recommendable_items_are_drawn(settings: dict[str, Any]) -> None:
    adapter: TypeAdapter[SamplerSettings] = TypeAdapter(SamplerSettings)
    recommendable = torch.arange(NUM_ITEMS) % 4 == 1
    read = adapter.validate_python(settings | {"negatives": 40})
    sampler = make_sampler(read, NUM_ITEMS, 0, recommendable=recommendable)
    previous = Previous(torch.randn(9, 4), torch.randn(NUM_ITEMS, 4))
    for given in (None, previous):
        drawn = sampler.draw(_places(9)._replace(previous=given))
        assert set(drawn.items.flatten().tolist()) <= {1, 5, 9, 13, 17}
        torch.testing.assert_close(drawn.log_q.exp(), torch.full(drawn.log_q.shape, 0.2))
    assert set(sampler.draw(_places(9)).items.flatten().tolist()) == {1, 5, 9, 13, 17}
    with pytest.raises(ValueError, match="no item is recommendable"):
        make_sampler(read, NUM_ITEMS, 0, recommendable=torch.zeros(NUM_ITEMS, dtype=torch.bool))


def _places(num: int, step: int = 3) -> Places:
    numbers = torch.arange(num)
    pool = torch.multinomial(
        COUNTS, num, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    return Places(step, numbers, numbers % 4, pool, pool)


def _rows(places: Places, rows: Tensor) -> Places:
    return places._replace(
        numbers=places.numbers[rows], owners=places.owners[rows], targets=places.targets[rows]
    )


def test_bits_are_those_of_splitmix() -> None:
    """The same chain of hashes as of :mod:`recs.sampling.hashing`, one level deeper."""
    numbers, draws = torch.tensor([0, 5, 2**40]), torch.arange(3)
    bits = random_bits(11, 4, numbers, draws)
    for m, number in enumerate(numbers.tolist()):
        for k in range(3):
            level = np.uint64(hash_bits(np.uint64(hash_stream(11, TRAINING_NEGATIVES, 4)), number))
            expected = int(hash_bits(level, k))
            assert bits[m, k].item() % 2**64 == expected


@pytest.mark.parametrize("settings", [*ALL, {"name": "hard", "top": 5}])
@pytest.mark.parametrize("shared", [False, True])
def test_draws_do_not_depend_on_ranks(settings: dict[str, Any], shared: bool) -> None:
    if settings["name"] == "hard":
        sampler = _sampler(**settings, negatives=6)
        shared = False
    else:
        sampler = _sampler(**settings, negatives=6, shared=shared)
    places = _places(40)
    whole = sampler.draw(places)
    assert whole.items.shape == whole.log_q.shape == ((6,) if shared else (40, 6))
    for ranks in (2, 3):
        for rank in range(ranks):
            rows = torch.arange(rank, 40, ranks)
            part = sampler.draw(_rows(places, rows))
            assert torch.equal(part.items, whole.items if shared else whole.items[rows])
    assert not torch.equal(sampler.draw(places._replace(step=4)).items, whole.items)


def test_seeds_differ() -> None:
    places = _places(40)
    first, second = (_sampler(seed, name="uniform", negatives=4).draw(places) for seed in (1, 2))
    assert not torch.equal(first.items, second.items)


def _expected(settings: dict[str, Any], places: Places) -> np.ndarray:
    uniform = np.full(NUM_ITEMS, 1 / NUM_ITEMS)
    if settings["name"] == "uniform":
        return uniform
    if settings["name"] == "mixed":
        others = {"name": settings.get("others", "popularity")}
        return 0.25 * uniform + 0.75 * _expected(others, places)
    if settings["name"] == "in_batch":
        weights = np.bincount(places.pool.numpy(), minlength=NUM_ITEMS).astype(float)
    else:
        weights = COUNTS.numpy() ** settings.get("exponent", 1.0)
    return weights / weights.sum()


@pytest.mark.parametrize("settings", ALL)
def test_draws_follow_the_distribution(settings: dict[str, Any]) -> None:
    places = _places(5000)
    items = _sampler(**settings, negatives=8).draw(places).items
    found = np.bincount(items.flatten().numpy(), minlength=NUM_ITEMS)
    expected = _expected(settings, places) * items.numel()
    possible = expected > 0
    assert (found[~possible] == 0).all()
    statistic = ((found - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < 45.3  # chi-square of 19 degrees of freedom: p < .0007


@pytest.mark.parametrize("settings", ALL)
def test_log_q_is_that_of_the_distribution(settings: dict[str, Any]) -> None:
    sampler = _sampler(**settings, negatives=8)
    items = torch.arange(NUM_ITEMS)[COUNTS > 0]
    by_counts = _places(1)._replace(pool=torch.repeat_interleave(COUNTS.long()))
    expected = torch.from_numpy(np.log(_expected(settings, by_counts)[items])).float()
    torch.testing.assert_close(sampler.log_q(items), expected)
    assert sampler.log_q(torch.tensor([0])).isfinite().all()


def test_counts_are_asked_for() -> None:
    adapter: TypeAdapter[SamplerSettings] = TypeAdapter(SamplerSettings)
    settings = adapter.validate_python({"name": "popularity"})
    with pytest.raises(ValueError, match="popularity negatives want the counts of all 20 items"):
        make_sampler(settings, NUM_ITEMS, 0)


def _positives(sets: list[set[int]]) -> UserPositives:
    offsets = torch.tensor([0, *map(len, sets)]).cumsum(0)
    items = torch.tensor([item for row in sets for item in sorted(row)], dtype=torch.int32)
    return UserPositives(offsets, items)


SETS = [{1, 5, 19}, set(), set(range(20)), {0}]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sets", [SETS, [set(), set(), set(), set()]])
def test_collisions_are_positives_of_the_user(shared: bool, sets: list[set[int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    owners = torch.randint(4, (50,), generator=generator)
    shape = (30,) if shared else (50, 30)
    candidates = torch.randint(NUM_ITEMS, shape, generator=generator)
    targets = torch.randint(NUM_ITEMS, (50,), generator=generator)
    found = collides(owners, candidates, _positives(sets))
    places = Places(0, torch.arange(50), owners, targets, targets, _positives(sets))
    with_targets = collisions(candidates, places)
    rows = candidates.expand(50, 30).tolist()
    for m, (owner, row) in enumerate(zip(owners.tolist(), rows, strict=True)):
        assert found[m].tolist() == [item in sets[owner] for item in row]
        known = sets[owner] | {int(targets[m])}
        assert with_targets[m].tolist() == [item in known for item in row]


@pytest.mark.parametrize(
    "own, possible",
    [
        ({0, 1, 2, 3}, {4, 5}),  # fewer are left than are looked for
        ({0, 1, 2, 3, 4, 5}, set()),
        ({0, 1, 2, 3, 17}, {4, 5}),  # wanted, but not recommendable any more
    ],
)
@pytest.mark.parametrize("target", [0, 17])
def test_hard_negatives_are_never_items_that_may_not_be_recommended(
    own: set[int], possible: set[int], target: int
) -> None:
    torch.manual_seed(0)
    recommendable = torch.arange(NUM_ITEMS) < 6
    adapter: TypeAdapter[SamplerSettings] = TypeAdapter(SamplerSettings)
    settings = adapter.validate_python({"name": "hard", "negatives": 60, "top": 5})
    sampler = make_sampler(settings, NUM_ITEMS, 0, recommendable=recommendable)
    previous = Previous(torch.randn(1, 4), torch.randn(NUM_ITEMS, 4), torch.randn(NUM_ITEMS))
    one, none = torch.tensor([target]), torch.zeros(1, dtype=torch.int64)
    places = Places(1, none, none, one, one, _positives([own]), previous)
    drawn = sampler.draw(places).items
    assert drawn.max() < 6
    assert set(drawn[~collisions(drawn, places)].tolist()) == possible


def test_hard_negatives_are_the_best_non_positives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recs.nn.samplers._BLOCK", 3 * NUM_ITEMS)  # several blocks of places
    torch.manual_seed(0)
    sets = [{1, 5, 19}, set(), set(range(12)), {0}]
    places = _places(40)
    previous = Previous(torch.randn(40, 4), torch.randn(NUM_ITEMS, 4), torch.randn(NUM_ITEMS))
    places = places._replace(previous=previous, positives=_positives(sets))
    top = hard_candidates(previous, places, 5, torch.arange(NUM_ITEMS))
    assert previous.biases is not None
    scores = previous.queries @ previous.vectors.T + previous.biases
    for m, owner in enumerate(places.owners.tolist()):
        barred = sets[owner] | {int(places.targets[m])}
        order = [item for item in scores[m].argsort(descending=True).tolist() if item not in barred]
        assert top[m].tolist() == order[:5]
    drawn = _sampler(name="hard", top=5, negatives=50).draw(places).items
    for m in range(40):
        assert set(drawn[m].tolist()) == set(top[m].tolist())
