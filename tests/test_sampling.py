"""Contract of the samplers: what is drawn depends on (seed, user) and never hits an exclusion."""

from __future__ import annotations

import numpy as np
import pytest

from recs.sampling import Sampler, hash_uniform

NUM_ITEMS = 50
RECOMMENDABLE = np.arange(NUM_ITEMS) % 5 != 0
COUNTS = np.arange(NUM_ITEMS) + 1

SAMPLERS = {
    "uniform": Sampler.uniform(RECOMMENDABLE),
    "popularity": Sampler.popularity(RECOMMENDABLE, COUNTS),
    "popularity^0.5": Sampler.popularity(RECOMMENDABLE, COUNTS, alpha=0.5),
}


@pytest.fixture(params=SAMPLERS)
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return SAMPLERS[request.param]


def _lists(*lists: list[int]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, lists)])
    return offsets, np.array([item for items in lists for item in items], np.int32)


def _split(lists: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    offsets, items = lists
    return [items[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def test_uniform_numbers_are_uniform_and_keyed() -> None:
    draws = np.array([hash_uniform(7, user, draw) for user in range(50) for draw in range(200)])
    assert 0 <= draws.min() < draws.max() < 1
    # 10 bins of 1000 each: the 99.99% point of chi-square with 9 degrees of freedom is 33.7.
    bins = np.histogram(draws, 10, (0, 1))[0]
    assert ((bins - 1000) ** 2 / 1000).sum() < 33.7
    assert len(np.unique(draws)) == draws.size
    assert hash_uniform(8, 0, 0) != hash_uniform(7, 0, 0)


def test_draws_allowed_items_only(sampler: Sampler) -> None:
    exclude = _lists([1, 2, 3, 44, 47, 48, 49], [], [0, 5, 999])
    drawn = _split(sampler.sample(np.array([3, 4, 5]), exclude, 20, seed=1))
    for items, excluded in zip(drawn, _split(exclude), strict=True):
        assert len(set(items)) == 20
        assert not set(items) & set(excluded)
        assert RECOMMENDABLE[items].all()


def test_depends_on_seed_and_user_only(sampler: Sampler) -> None:
    users = np.array([9, 2, 5])
    lists = [[1, 2], [3], []]
    drawn = _split(sampler.sample(users, _lists(*lists), 8, seed=1))
    turned = _split(sampler.sample(users[::-1], _lists(*lists[::-1]), 8, seed=1))
    assert turned == drawn[::-1]
    alone = [_split(sampler.sample(users[[n]], _lists(lists[n]), 8, seed=1))[0] for n in range(3)]
    assert alone == drawn
    assert _split(sampler.sample(users, _lists(*lists), 8, seed=2)) != drawn


def test_user_who_has_seen_nearly_everything_ends_with_fewer(sampler: Sampler) -> None:
    left = [41, 47]
    seen = [item for item in range(NUM_ITEMS) if item not in left]
    everything = list(range(NUM_ITEMS))
    exclude = _lists(seen, everything)
    offsets, items = sampler.sample(np.array([0, 1]), exclude, 20, seed=1)
    assert offsets.tolist() == [0, 2, 2]
    assert sorted(items) == left
    repeated = _split(sampler.sample(np.array([0, 1]), exclude, 20, seed=1, repeats=True))
    assert len(repeated[0]) == 20 and set(repeated[0]) == set(left) and repeated[1] == []


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("spread", [1, 10_000])
def test_drawn_in_proportion_to_weight(alpha: float, spread: int) -> None:
    # The heavy item is excluded for half the users: with a spread of 10,000 the exact sweep draws.
    counts = np.array([1, 2, 3, 4, 10 * spread])
    sampler = Sampler.popularity(np.ones(5, bool), counts, alpha)
    num_users = 20_000
    exclude = np.arange(num_users + 1), np.full(num_users, 4, np.int32)
    for repeats in (True, False):
        _, items = sampler.sample(np.arange(num_users), exclude, 1, seed=3, repeats=repeats)
        expected = counts[:4] ** alpha / (counts[:4] ** alpha).sum()
        np.testing.assert_allclose(np.bincount(items) / num_users, expected, atol=0.015)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="0 recommendable items"):
        Sampler.uniform(np.zeros(3, bool))
