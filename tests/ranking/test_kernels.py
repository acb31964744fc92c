"""Top-k and ranks against a plain NumPy oracle, for all three forms of scores."""

from __future__ import annotations

import numpy as np
import pytest

from recs.arrays.lists import Lists, offsets_of
from recs.ranking.kernels import gather, rank_among, rank_targets, top_k
from recs.ranking.scoring import DenseScores, Scores, SharedScores, SparseScores

USERS, ITEMS = 7, 23


def _lists(rows: list[list[int]]) -> Lists:
    lengths = np.array([len(row) for row in rows])
    return Lists(offsets_of(lengths), np.array(sum(rows, []), np.int32))


def _case(form: str, seed: int) -> tuple[Scores, np.ndarray, np.ndarray, Lists, Lists]:
    """Few distinct scores, so that ties abound; user 0 of sparse scores gets nothing."""
    random = np.random.default_rng(seed)
    dense = random.integers(0, 4, (USERS, ITEMS)).astype(np.float32)
    if form == "sparse":
        dense[0] = 0
        listed = [np.flatnonzero(row)[::-1] for row in dense]
        items = np.concatenate(listed).astype(np.int32)
        rows = np.repeat(np.arange(USERS), [len(row) for row in listed])
        scores: Scores = SparseScores(
            offsets_of(np.array([len(row) for row in listed])), items, dense[rows, items]
        )
    elif form == "dense":
        scores = DenseScores(dense)
    else:
        dense[:] = dense[0]
        scores = SharedScores(dense[0])
    allowed = random.random(ITEMS) < 0.8
    seen = [sorted(random.choice(ITEMS, 6, replace=False).tolist()) for _ in range(USERS)]
    targets = [random.choice(ITEMS, n % 4, replace=False).tolist() for n in range(USERS)]
    targets[3] = [seen[3][0], *(t for t in targets[3] if t != seen[3][0])]
    return scores, dense, allowed, _lists(seen), _lists(targets)


def _rows(lists: Lists) -> list[list[int]]:
    return [lists.rows(u, u + 1).items.tolist() for u in range(lists.num_rows)]


def _oracle_rank(scores: np.ndarray, candidates: set[int], target: int) -> tuple[int, int, int]:
    others = [scores[c] for c in candidates - {target}]
    above = sum(s > scores[target] for s in others)
    return 1 + above, sum(s == scores[target] for s in others), len(candidates)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("form", ["sparse", "dense", "shared"])
def test_top_k(form: str, seed: int) -> None:
    scores, dense, allowed, seen, _ = _case(form, seed)
    for k in (1, 4, ITEMS + 5):
        lists = top_k(scores, seen, allowed, k)
        for u, hidden in enumerate(_rows(seen)):
            open_items = [i for i in range(ITEMS) if allowed[i] and i not in hidden]
            if form == "sparse":
                open_items = [i for i in open_items if dense[u, i] > 0]
            expected = sorted(open_items, key=lambda i: (-dense[u, i], i))[:k]
            mine = lists.rows(u, u + 1)
            assert mine.items.tolist() == expected
            assert mine.values is not None
            np.testing.assert_array_equal(mine.values, dense[u, expected])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("form", ["sparse", "dense", "shared"])
def test_full_ranks(form: str, seed: int) -> None:
    scores, dense, allowed, seen, targets = _case(form, seed)
    ranks = rank_targets(scores, seen, allowed, targets)
    place = 0
    for u, (hidden, wanted) in enumerate(zip(_rows(seen), _rows(targets), strict=True)):
        candidates = {i for i in range(ITEMS) if allowed[i] and (i not in hidden or i in wanted)}
        for target in wanted:
            found = ranks.ranks[place], ranks.ties[place], ranks.candidates[place]
            place += 1
            if not allowed[target] or (form == "sparse" and u == 0):
                assert found == (0, 0, len(candidates))
            else:
                assert found == _oracle_rank(dense[u], candidates, target)
    assert place == ranks.ranks.size


@pytest.mark.parametrize("form", ["sparse", "dense", "shared"])
def test_ranks_among_given_candidates(form: str) -> None:
    scores, dense, allowed, _, targets = _case(form, 1)
    random = np.random.default_rng(9)
    # With repeats, and with targets among them; not heeding what is recommendable.
    given = [random.choice(ITEMS, 8).tolist() for _ in range(USERS)]
    given[2] += _rows(targets)[2]
    given[3] = []
    ranks = rank_among(scores, _lists(given), targets, ITEMS)
    place = 0
    for u, (listed, wanted) in enumerate(zip(given, _rows(targets), strict=True)):
        for target in wanted:
            found = ranks.ranks[place], ranks.ties[place], ranks.candidates[place]
            place += 1
            if u == 3 or (form == "sparse" and u == 0):
                assert found[0] == 0
            else:
                assert found == _oracle_rank(dense[u], set(listed) | set(wanted), target)


@pytest.mark.parametrize("form", ["sparse", "dense", "shared"])
def test_gather(form: str) -> None:
    scores, dense, *_ = _case(form, 2)
    wanted = [[u, 22, 0, u] for u in range(USERS)]
    found = gather(scores, _lists(wanted)).reshape(USERS, 4)
    np.testing.assert_array_equal(found, [dense[u, row] for u, row in enumerate(wanted)])


@pytest.mark.parametrize("form", ["dense", "shared"])
def test_items_that_a_model_does_not_know_come_last(form: str) -> None:
    known = np.array([3.0, 1.0, 2.0], np.float32)
    scores = DenseScores(known[None]) if form == "dense" else SharedScores(known)
    allowed, nobody = np.ones(5, bool), _lists([[]])
    assert top_k(scores, nobody, allowed, 9).items.tolist() == [0, 2, 1]
    ranks = rank_targets(scores, nobody, allowed, _lists([[4, 1]]))
    assert ranks.ranks.tolist() == [4, 3]
    assert ranks.ties.tolist() == [1, 0]


def test_negative_sparse_scores_rank_below_unlisted_items() -> None:
    scores = SparseScores(
        np.array([0, 2]), np.array([0, 1], np.int32), np.array([-1, 2], np.float32)
    )
    allowed, nobody = np.ones(5, bool), _lists([[]])
    ranks = rank_targets(scores, nobody, allowed, _lists([[0, 1, 2]]))
    assert ranks.ranks.tolist() == [5, 1, 2]
    assert ranks.ties.tolist() == [0, 0, 2]
    assert top_k(scores, nobody, allowed, 5).items.tolist() == [1]
