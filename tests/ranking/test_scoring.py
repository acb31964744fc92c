"""Top-k and ranks against a plain NumPy oracle, for all three forms of scores."""

from __future__ import annotations

import numpy as np
import pytest

from recs.arrays.lists import Lists, offsets_of
from recs.ranking.ranks import rank_among, unite
from recs.ranking.scoring import (
    DenseScores,
    NotANumber,
    Scorer,
    Scores,
    SharedScores,
    SparseScores,
)

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
        lists = scores.top_k(seen, allowed, k)
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
    ranks = scores.rank(seen, allowed, targets)
    place = 0
    for u, (hidden, wanted) in enumerate(zip(_rows(seen), _rows(targets), strict=True)):
        candidates = {i for i in range(ITEMS) if allowed[i] and i not in hidden}
        for target in wanted:
            found = ranks.ranks[place], ranks.ties[place], ranks.candidates[place]
            place += 1
            if target not in candidates or dense[u, target] <= scores.floor:
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
    united = unite(_lists(given), targets, ITEMS)
    ranks = rank_among(united, scores.gather(united), targets)
    place = 0
    for u, (listed, wanted) in enumerate(zip(given, _rows(targets), strict=True)):
        for target in wanted:
            found = ranks.ranks[place], ranks.ties[place], ranks.candidates[place]
            place += 1
            assert found == _oracle_rank(dense[u], set(listed) | set(wanted), target)
    kept = ranks.only(ranks.ties == 0)
    assert kept.ranks.tolist() == [r if t == 0 else 0 for r, t, _ in zip(*ranks, strict=True)]
    assert not kept.ties.any() and kept.candidates is ranks.candidates


@pytest.mark.parametrize("form", ["sparse", "dense", "shared"])
def test_gather(form: str) -> None:
    scores, dense, *_ = _case(form, 2)
    wanted = [[u, 22, 0, u] for u in range(USERS)]
    found = scores.gather(_lists(wanted)).reshape(USERS, 4)
    np.testing.assert_array_equal(found, [dense[u, row] for u, row in enumerate(wanted)])


@pytest.mark.parametrize("form", ["dense", "shared"])
def test_items_that_a_model_does_not_know_come_last(form: str) -> None:
    known = np.array([3.0, 1.0, 2.0], np.float32)
    scores = DenseScores(known[None]) if form == "dense" else SharedScores(known)
    allowed, nobody = np.ones(5, bool), _lists([[]])
    assert scores.top_k(nobody, allowed, 9).items.tolist() == [0, 2, 1]
    ranks = scores.rank(nobody, allowed, _lists([[4, 1]]))
    assert ranks.ranks.tolist() == [0, 3]  # the first is in no list
    assert ranks.ties.tolist() == [0, 0]
    assert ranks.candidates.tolist() == [5, 5]


def test_negative_sparse_scores_rank_below_unlisted_items() -> None:
    scores = SparseScores(
        np.array([0, 2]), np.array([0, 1], np.int32), np.array([-1, 2], np.float32)
    )
    allowed, nobody, targets = np.ones(5, bool), _lists([[]]), _lists([[0, 1, 2]])
    among = unite(_lists([[0, 1, 2, 3, 4]]), targets, 5)
    ranks = rank_among(among, scores.gather(among), targets)
    assert ranks.ranks.tolist() == [5, 1, 2]
    assert ranks.ties.tolist() == [0, 0, 2]
    # Lists hold neither, of whatever length.
    assert scores.top_k(nobody, allowed, 5).items.tolist() == [1]
    assert scores.rank(nobody, allowed, targets).ranks.tolist() == [0, 1, 0]


@pytest.mark.parametrize("form", ["sparse", "dense", "shared"])
def test_scores_that_are_no_numbers_are_refused(form: str) -> None:
    values = np.array([1, np.nan, 2], np.float32)
    scores: Scores = {
        "sparse": SparseScores(np.array([0, 3]), np.array([4, 0, 2], np.int32), values),
        "dense": DenseScores(values[None]),
        "shared": SharedScores(values),
    }[form]
    allowed, nobody = np.ones(5, bool), _lists([[]])
    item = 0 if form == "sparse" else 1
    with pytest.raises(NotANumber, match=f"item {item} "):
        scores.top_k(nobody, allowed, 1)
    with pytest.raises(NotANumber, match=f"item {item} "):
        scores.rank(nobody, allowed, _lists([[2]]))


def test_shared_scores_heed_another_catalogue() -> None:
    scores, nobody = SharedScores(np.array([1, 3, 2], np.float32)), _lists([[]])
    first, second = np.ones(3, bool), np.array([True, False, True])
    assert scores.top_k(nobody, first, 2).items.tolist() == [1, 2]
    assert scores.top_k(nobody, second, 2).items.tolist() == [2, 0]
    assert scores.rank(nobody, first, _lists([[0]])).ranks.tolist() == [3]


def test_a_scorer_answers_pairs_and_lists_by_its_scores_in_bounded_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Sums(Scorer):
        num_items = ITEMS

        def scores(self, histories: Lists) -> DenseScores:
            asked.append(histories.num_rows)
            sums = np.add.reduceat(histories.items, histories.offsets[:-1])
            return DenseScores(np.add.outer(sums, np.arange(ITEMS)).astype(np.float32))

    histories, candidates = _lists([[n] for n in range(5)]), _lists([[0, n] for n in range(5)])
    monkeypatch.setattr("recs.ranking.scoring.BLOCK_SCORES", 2 * ITEMS)
    found = Sums().pairs(histories, candidates)
    assert found.tolist() == [0, 0, 1, 2, 2, 4, 3, 6, 4, 8] and asked == [2, 2, 1]
    lists = Sums().top(histories, _lists([[22]] * 5), np.ones(ITEMS, bool), 1)
    assert lists.items.tolist() == [21] * 5


def test_a_scorer_without_scores_says_so() -> None:
    class Index(Scorer):
        num_items = ITEMS

    with pytest.raises(NotImplementedError, match="Index does not score all items"):
        Index().pairs(_lists([[0]]), _lists([[1]]))
