"""Contract of the samplers: what is drawn depends on the keys and never hits an exclusion.

One suite for both forms: :class:`Sampler` draws for whole users, :class:`EventStream` for events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recs.errors import UserError
from recs.evaluation.bootstrap import poisson_weights
from recs.sampling import (
    EVENT,
    EXPLICIT,
    WANTED,
    EventStream,
    Groups,
    Sampler,
    group_items,
    hash_bits,
    hash_stream,
    hashing,
    to_unit,
)

NUM_ITEMS = 50
RECOMMENDABLE = np.arange(NUM_ITEMS) % 5 != 0
COUNTS = np.arange(NUM_ITEMS) + 1
WEIGHTS = {0.0: RECOMMENDABLE * 1.0, 1.0: RECOMMENDABLE * COUNTS, 0.5: RECOMMENDABLE * COUNTS**0.5}
#: Item 0, which all users want, is in all three groups; of others, items below 40 are in two.
PAIRS = [(item, item % 2) for item in range(NUM_ITEMS)]
PAIRS += [(item, 2) for item in range(40)] + [(0, 1)]

#: Draws (user_ids, exclusions of each, wanted of each, seed) -> negatives of each.
Draw = Callable[[list[int], list[list[int]], int, int], list[list[int]]]
#: (user, kind, item or the user's positives) of each row.
Rows = list[tuple[int, int, Any]]


def _lists(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, lists)])
    return offsets, np.array([item for items in lists for item in items], np.int32)


def _split(offsets: np.ndarray, items: np.ndarray) -> list[list[int]]:
    return [items[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def _users(sampler: Sampler) -> Draw:
    def draw(users: list[int], exclude: list[list[int]], size: int, seed: int) -> list[list[int]]:
        return _split(*sampler.sample(np.array(users), _lists(exclude), size, seed=seed))

    return draw


def _events(groups: Groups) -> Draw:
    """One event of item 0 a user; users come in any order, a stream of its own for each."""

    def draw(users: list[int], exclude: list[list[int]], size: int, seed: int) -> list[list[int]]:
        drawn = []
        for user, items in zip(users, exclude, strict=True):
            stream = EventStream(groups, size, seed=seed)
            drawn += _feed(stream, [(user, WANTED, [0, *items]), (user, EVENT, 0)])
        return drawn

    return draw


def _feed(stream: EventStream, rows: Rows) -> list[list[int]]:
    keys = np.array([user << 32 | kind for user, kind, _ in rows])
    items = np.array([-1 if isinstance(held, list) else held for *_, held in rows], np.int32)
    lists = _lists([held if isinstance(held, list) else [] for *_, held in rows])
    drawn = stream.draw(keys, items, lists)
    assert [n for n, row in enumerate(rows) if row[1] >= EVENT] == drawn.rows.tolist()
    return _split(drawn.offsets, drawn.items)


def _pairs() -> tuple[np.ndarray, np.ndarray]:
    items, groups = np.array(PAIRS, np.int32).T
    return items, groups


SAMPLERS = {
    "uniform": _users(Sampler.uniform(RECOMMENDABLE)),
    "popularity": _users(Sampler.popularity(RECOMMENDABLE, COUNTS)),
    "popularity^0.5": _users(Sampler.popularity(RECOMMENDABLE, COUNTS, alpha=0.5)),
    "events-uniform": _events(group_items(WEIGHTS[0.0])),
    "events-popularity": _events(group_items(WEIGHTS[1.0])),
    "events-popularity^0.5": _events(group_items(WEIGHTS[0.5])),
    "events-by-rule": _events(group_items(WEIGHTS[0.0], _pairs())),
}


@pytest.fixture(params=SAMPLERS)
def draw(request: pytest.FixtureRequest) -> Draw:
    return SAMPLERS[request.param]


def test_uniform_numbers_are_uniform_and_keyed() -> None:
    streams = [np.uint64(hash_stream(7, hashing.BOOTSTRAP, user)) for user in range(50)]
    draws = np.array([to_unit(np.uint64(hash_bits(s, n))) for s in streams for n in range(200)])
    assert 0 <= draws.min() < draws.max() < 1
    # 10 bins of 1000 each: the 99.99% point of chi-square with 9 degrees of freedom is 33.7.
    bins = np.histogram(draws, 10, (0, 1))[0]
    assert ((bins - 1000) ** 2 / 1000).sum() < 33.7
    assert len(np.unique(draws)) == draws.size
    assert hash_stream(8, hashing.BOOTSTRAP, 0) != streams[0]
    assert hash_stream(7, hashing.BOOTSTRAP, 0) == streams[0]


def test_streams_of_different_purposes_have_nothing_in_common() -> None:
    purposes = [value for name, value in vars(hashing).items() if name.isupper() and name[0] != "_"]
    assert len(set(purposes)) == len(purposes) == 7
    words = np.array(
        [[hash_stream(3, purpose, user) for user in range(10_000)] for purpose in purposes],
        np.uint64,
    )
    assert np.unique(words).size == words.size
    correlations = np.corrcoef(words.astype(np.float64) / 2.0**64) - np.eye(len(purposes))
    assert np.abs(correlations).max() < 0.05  # five standard errors


def test_candidates_do_not_depend_on_weights_in_the_bootstrap() -> None:
    users = np.arange(10_000)
    nothing = np.zeros(users.size + 1, np.int64), np.empty(0, np.int32)
    every = np.ones(1000, bool)
    samplers = {
        "uniform": Sampler.uniform(every),
        "popularity": Sampler.popularity(every, np.ones(1000)),
        "pairs": Sampler.uniform(every, purpose=hashing.RELEVANCE_PAIRS),
    }
    drawn = {
        name: sampler.sample(users, nothing, 3, seed=1)[1].reshape(-1, 3)
        for name, sampler in samplers.items()
    }
    weights = poisson_weights(users, 20, 1)[:, 1:]
    columns = np.hstack([weights, *drawn.values()])
    correlations = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlations).max() < 0.05
    assert (drawn["uniform"] == drawn["popularity"]).mean() < 0.01
    again = samplers["uniform"].sample(users, nothing, 3, seed=1)[1]
    np.testing.assert_array_equal(again.reshape(-1, 3), drawn["uniform"])


def test_negatives_of_the_first_users_events_are_no_other_users() -> None:
    groups = group_items(np.ones(10_000))

    def events(user: int) -> list[list[int]]:
        rows: Rows = [(user, WANTED, [0]), *((user, EVENT + n, 0) for n in range(20))]
        return _feed(EventStream(groups, 4, seed=1), rows)

    drawn = [tuple(items) for user in range(23) for items in events(user)]
    assert len(set(drawn)) == len(drawn)


def test_draws_allowed_items_only(draw: Draw) -> None:
    exclude: list[list[int]] = [[1, 2, 3, 44, 47, 48, 49], [], [0, 5, 25]]
    for items, excluded in zip(draw([3, 4, 5], exclude, 20, 1), exclude, strict=True):
        assert len(set(items)) == len(items) == 20
        assert not set(items) & set(excluded)
        assert RECOMMENDABLE[items].all()


def test_depends_on_seed_and_user_only(draw: Draw) -> None:
    users = [9, 2, 5]
    lists: list[list[int]] = [[1, 2], [3], []]
    drawn = draw(users, lists, 8, 1)
    assert draw(users[::-1], lists[::-1], 8, 1) == drawn[::-1]
    assert [draw([users[n]], [lists[n]], 8, 1)[0] for n in range(3)] == drawn
    assert draw(users, lists, 8, 2) != drawn
    assert len({tuple(items) for items in draw(users, [[], [], []], 8, 1)}) == 3


def test_user_who_has_seen_nearly_everything_ends_with_fewer(draw: Draw) -> None:
    left = [31, 37]
    seen = [item for item in range(NUM_ITEMS) if item not in left]
    few, none = draw([0, 1], [seen, list(range(NUM_ITEMS))], 20, 1)
    assert sorted(few) == left and none == []  # whoever has none left is ranked first of one


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("spread", [1, 10_000])
@pytest.mark.parametrize("form", ["users", "events"])
def test_drawn_in_proportion_to_weight(alpha: float, spread: int, form: str) -> None:
    # The heavy item is excluded for all users: with a spread of 10,000 the exact draw does it.
    counts = np.array([1, 2, 3, 4, 10 * spread])
    num = 20_000
    if form == "events":
        stream = EventStream(group_items(counts**alpha), 1, seed=3)
        keys = np.concatenate([[WANTED], EVENT + np.arange(num)])
        held = np.full(num + 1, 4, np.int32)
        starts = np.minimum(np.arange(num + 2), 1)
        items = stream.draw(keys, held, (starts, np.array([4], np.int32))).items
    else:
        sampler = Sampler.popularity(np.ones(5, bool), counts, alpha)
        exclude = np.arange(num + 1), np.full(num, 4, np.int32)
        _, items = sampler.sample(np.arange(num), exclude, 1, seed=3)
    expected = counts[:4] ** alpha / (counts[:4] ** alpha).sum() * num
    # 16.3 and 21.1 are the 99.9% and 99.99% points of chi-square with 3 degrees of freedom.
    assert ((np.bincount(items, minlength=4) - expected) ** 2 / expected).sum() < 21.1


@pytest.mark.parametrize("form", ["users", "events"])
def test_exact_draws_without_replacement_are_by_weight(form: str) -> None:
    # Of items 0 to 2, weights 1, 2, 3, two are wanted; the heavy item 3 is the user's own.
    weights, num = np.array([1.0, 2.0, 3.0, 1e9]), 20_000
    if form == "events":
        stream = EventStream(group_items(weights), 2, seed=5)
        rows: Rows = [(1, WANTED, [3]), *((1, EVENT + n, 3) for n in range(num))]
        pairs = _feed(stream, rows)
    else:
        sampler = Sampler.popularity(np.ones(4, bool), weights)
        exclude = np.arange(num + 1), np.full(num, 3, np.int32)
        pairs = _split(*sampler.sample(np.arange(num), exclude, 2, seed=5))
    found = np.zeros((3, 3))
    for first, second in pairs:
        found[first, second] += 1
    shares = weights[:3] / 6
    expected = shares[:, None] * shares / (1 - shares[:, None]) * num
    differ = ~np.eye(3, dtype=bool)
    # The 99.99% point of chi-square with 5 degrees of freedom is 25.7.
    assert ((found - expected)[differ] ** 2 / expected[differ]).sum() < 25.7
    assert not found[~differ].any()


def test_draws_within_the_groups_of_the_positive() -> None:
    # Groups 0 = {0, 1, 2}, 1 = {2, 3, 4}, 2 = {5}; item 2 is in two, item 6 in none.
    pairs = np.array([0, 1, 2, 2, 3, 4, 5]), np.array([0, 0, 0, 1, 1, 1, 2])
    groups = group_items(np.ones(7), pairs)
    stream = EventStream(groups, 3, seed=1)
    rows: Rows = [
        (0, WANTED, [2, 5, 6]),
        *((0, EVENT + n, item) for n, item in enumerate([2, 5, 6])),
    ]
    of_two, of_five, of_six = _feed(stream, rows)
    assert len(of_two) == 3 and set(of_two) < {0, 1, 3, 4}
    assert of_five == of_six == []
    # A group that is used up gives way to the positive's other one.
    stream = EventStream(groups, 3, seed=1)
    (drawn,) = _feed(stream, [(0, WANTED, [0, 1, 2]), (0, EVENT, 2)])
    assert sorted(drawn) == [3, 4]


def test_explicit_negatives_are_dealt_out_once() -> None:
    groups = group_items(np.ones(40))
    explicit = [3, 4, 5, 6, 7]
    events = [0, 1, 0, 2, 1]

    def deal(explicit: list[int], size: int) -> list[list[int]]:
        rows: Rows = [(4, WANTED, [0, 1, 2]), *((4, EXPLICIT, item) for item in explicit)]
        stream = EventStream(groups, size, seed=1, explicit=True)
        return _feed(stream, [*rows, *((4, EVENT + n, item) for n, item in enumerate(events))])

    drawn = deal(explicit, 4)
    assert all(len(set(items)) == 4 and not set(items) & {0, 1, 2} for items in drawn)
    # Three positives take two, two and one, first; further events of the same items take none.
    heads = [[item for item in items[:2] if item in explicit] for items in drawn]
    assert sorted(sum((heads[n] for n in (0, 1, 3)), [])) == explicit
    assert sorted(len(heads[n]) for n in (0, 1, 3)) == [1, 2, 2]
    # Neither their order, nor repeats, nor those that the user wants after all, change the deal.
    assert deal([7, 3, 0, 6, 5, 3, 4], 4) == drawn
    assert all(items[0] in range(3, 20) for items in deal([*range(3, 20)], 1)[:2])


def test_state_is_carried_from_batch_to_batch() -> None:
    groups = group_items(np.ones(40))
    rows: Rows = []
    for user in (1, 5, 6):
        wanted = [user, 2 * user + 10, 30]
        rows += [(user, WANTED, wanted), (user, EXPLICIT, 20), (user, EXPLICIT, 21)]
        rows += [(user, EVENT + n, wanted[n % 3]) for n in range(7)]
    at_once = _feed(EventStream(groups, 4, seed=1, explicit=True), rows)
    stream = EventStream(groups, 4, seed=1, explicit=True)
    assert sum((_feed(stream, [row]) for row in rows), []) == at_once


@pytest.mark.parametrize(
    "rows, message",
    [
        ([(7, WANTED, [0, 1, 2]), (7, EVENT, 1)], "user 7 has fewer than 2 .* of item 1"),
        ([(7, WANTED, [0]), (7, EVENT, 1)], "user 7 .* item 1, which user_positives lacks"),
        ([(6, WANTED, [1]), (7, EVENT, 1)], "user 7 .* item 1, which user_positives lacks"),
        ([(7, WANTED, [0, 9])], "user 7 .* outside of the vocabulary's 0 to 3"),
        ([(7, WANTED, [0]), (7, EVENT, -1)], "user 7 .* outside of the vocabulary's 0 to 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows: Rows, message: str) -> None:
    stream = EventStream(group_items(np.ones(4)), 2, seed=1, fewer=False)
    with pytest.raises(UserError, match=message):
        _feed(stream, rows)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(UserError, match="0 recommendable items"):
        Sampler.uniform(np.zeros(3, bool))
    with pytest.raises(UserError, match="0 recommendable items"):
        group_items(np.zeros(3))
