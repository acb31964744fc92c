r"""A user's metrics from the positions of their targets.

The system's list of a user is all candidates in order of score. Of the user's T targets n were
ranked, at positions p_1 < p_2 < … < p_n (1 is best); T − n were not and count as never found. k is
the length of the list looked at, ``inf`` for the whole of it. All metrics are in [0, 1], and a user
without any ranked target has 0 in each.

Equal scores leave positions open: :data:`TIES` has two ways to settle them.

The functions are compiled by numba and are what the Spark jobs run; ``positions`` is float64[n],
ascending.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.evaluation.ties import (
    TieGroups,
    expected_gain,
    expected_hit_rate,
    expected_hits,
    expected_precisions,
    expected_reciprocal_rank,
    num_sums,
    running_sums,
    tie_groups,
)

#: How candidates of the target's score count: ``against`` the model places all of them before it;
#: ``random`` gives the expectation of each metric over all orders of equal scores
#: (:mod:`recs.evaluation.ties`). Most papers say nothing of ties; their code leaves equal scores in
#: the order that its sort happens to give, often with the target first.
TIES = ("against", "random")


@njit(cache=True, nogil=True)
def last_positions(groups: TieGroups) -> np.ndarray:
    """Return the positions of the measured targets if each tie group has them in its last places.

    Examples
    --------
    Two targets and one more candidate share the first three places: that one comes first.

    >>> last_positions(tie_groups(np.array([1, 1, 9]), np.array([2, 2, 0]), np.ones(3, np.bool_)))
    array([2., 3., 9.])
    """
    positions = np.empty(groups.targets.sum())
    end = 0
    for g in range(groups.first.size):
        for left in range(groups.targets[g], 0, -1):
            positions[end] = groups.first[g] + groups.places[g] - left
            end += 1
    return positions


@njit(cache=True, nogil=True)
def num_within(positions: np.ndarray, k: float) -> int:
    """Return how many positions are within the first k."""
    count = 0
    while count < positions.size and positions[count] <= k:
        count += 1
    return count


@njit(cache=True, nogil=True)
def hit_rate(positions: np.ndarray, num_targets: int, k: float) -> float:
    """HR@k = 1 if some target is among the first k, else 0.

    >>> hit_rate(np.array([3.0, 8.0]), 2, 3), hit_rate(np.array([3.0, 8.0]), 2, 2)
    (1.0, 0.0)
    """
    return 1.0 if num_within(positions, k) > 0 else 0.0


@njit(cache=True, nogil=True)
def recall(positions: np.ndarray, num_targets: int, k: float) -> float:
    """Recall@k = |{j : p_j ≤ k}| / T.

    >>> recall(np.array([1.0, 3.0, 8.0]), 4, 5)
    0.5
    """
    return num_within(positions, k) / num_targets


@njit(cache=True, nogil=True)
def precision(positions: np.ndarray, num_targets: int, k: float) -> float:
    """Precision@k = |{j : p_j ≤ k}| / k. Lists shorter than k are not excused.

    The precision of a whole list is that at k = its number of candidates.

    >>> precision(np.array([1.0, 3.0, 8.0]), 4, 5)
    0.4
    """
    return num_within(positions, k) / k


@njit(cache=True, nogil=True)
def ndcg(positions: np.ndarray, num_targets: int, k: float) -> float:
    """NDCG@k = Σ_{p_j ≤ k} 1/log2(1 + p_j) / Σ_{j ≤ min(T, k)} 1/log2(1 + j).

    Gains are binary; the denominator is the DCG of a list that starts with all T targets
    (Järvelin and Kekäläinen 2002).

    Targets at 1 and 3 of two: (1 + 1/2) / (1 + 1/log2 3) = 1.5 / 1.63093.

    >>> round(ndcg(np.array([1.0, 3.0]), 2, 10), 5)
    0.91972
    """
    gain = 0.0
    for j in range(num_within(positions, k)):
        gain += 1.0 / np.log2(1.0 + positions[j])
    return gain / ideal_gain(num_targets, k)


@njit(cache=True, nogil=True)
def ideal_gain(num_targets: int, k: float) -> float:
    """Return the DCG@k of a list that starts with all targets."""
    ideal = 0.0
    for j in range(1, int(min(float(num_targets), k)) + 1):
        ideal += 1.0 / np.log2(1.0 + j)
    return ideal


@njit(cache=True, nogil=True)
def average_precision(positions: np.ndarray, num_targets: int, k: float) -> float:
    """AP@k = Σ_{p_j ≤ k} (j / p_j) / min(T, k); its mean over users is MAP@k.

    Targets at 1 and 3 of two: (1/1 + 2/3) / 2.

    >>> round(average_precision(np.array([1.0, 3.0]), 2, 10), 5)
    0.83333
    """
    total = 0.0
    for j in range(num_within(positions, k)):
        total += (j + 1) / positions[j]
    return total / min(float(num_targets), k)


@njit(cache=True, nogil=True)
def reciprocal_rank(positions: np.ndarray, num_targets: int, k: float) -> float:
    """RR@k = 1 / p_1 if p_1 ≤ k, else 0; its mean over users is MRR@k.

    >>> reciprocal_rank(np.array([4.0, 5.0]), 2, 10), reciprocal_rank(np.array([4.0]), 1, 3)
    (0.25, 0.0)
    """
    return 1.0 / positions[0] if num_within(positions, k) > 0 else 0.0


@njit(cache=True, nogil=True)
def auc(negatives_above: np.ndarray, num_targets: int, num_negatives: int) -> float:
    """AUC = the mean over targets of the share of non-targets that the target is placed before.

    Parameters
    ----------
    negatives_above : float64[n]
        Candidates, targets left out, placed before each ranked target. A target that was not
        ranked is placed before none.
    num_targets
        T.
    num_negatives
        Candidates that are no targets; without any, a ranked target counts as 1.

    Examples
    --------
    Of 10 non-targets 1 is before the first target and 4 before the second: (0.9 + 0.6) / 2.

    >>> auc(np.array([1.0, 4.0]), 2, 10)
    0.75
    """
    if num_negatives == 0:
        return negatives_above.size / num_targets
    return np.sum(1.0 - negatives_above / num_negatives) / num_targets


@njit(cache=True, nogil=True)
def _negatives_above(groups: TieGroups, share: float) -> np.ndarray:
    """Return the non-targets before each measured target, ``share`` of those of its score."""
    above = np.empty(groups.targets.sum())
    end = 0
    for g in range(groups.first.size):
        for _ in range(groups.targets[g]):
            above[end] = groups.first[g] - 1 - groups.ahead[g] + share * groups.others[g]
            end += 1
    return above


@compiled_once()
@njit(cache=True, nogil=True)
def user_metrics(
    offsets: np.ndarray,
    ranks: np.ndarray,
    ties: np.ndarray,
    candidates: np.ndarray,
    counted: np.ndarray,
    ks: np.ndarray,
    random: bool,
) -> np.ndarray:
    """Return all metrics of a block of users, over several selections of their targets.

    Parameters
    ----------
    offsets : int64[B+1]
        User b's targets are ``offsets[b]:offsets[b + 1]``, in any order.
    ranks, ties, candidates : int64[T]
        As in table ranks; rank 0 where the target was not ranked.
    counted : bool[S, T]
        Targets that each selection measures; the others only take up their places. Of equal scores
        they come before those that are measured, or at random as all do.
    ks : float64[K]
        Lengths of the list, inf for the whole.
    random
        Whether ties are settled at ``random``, not ``against`` the model; see :data:`TIES`.

    Returns
    -------
    float64[B, S, 6K + 1]
        For each k :data:`~recs.schema.METRICS_OF_RANKS`, in that order, then AUC; 0 for a user
        without such targets.
    """
    num_users = offsets.size - 1
    out = np.zeros((num_users, counted.shape[0], 6 * ks.size + 1))
    sums = running_sums(0)
    for u in range(num_users):
        start, stop = offsets[u], offsets[u + 1]
        order = start + np.argsort(ranks[start:stop], kind="mergesort")
        order = order[ranks[order] > 0]
        ranked, tied = ranks[order], ties[order]
        longest = candidates[start:stop].max()
        for s in range(counted.shape[0]):
            num_targets = np.sum(counted[s, start:stop])
            if num_targets == 0:
                continue
            groups = tie_groups(ranked, tied, counted[s][order])
            row = out[u, s]
            share = 0.5 if random else 1.0
            above = _negatives_above(groups, share)
            row[6 * ks.size] = auc(above, num_targets, longest - order.size)
            if random and np.any(groups.places > groups.targets):
                if num_sums(groups) >= sums.shape[0]:
                    sums = running_sums(2 * num_sums(groups))
                _expect(groups, num_targets, longest, ks, sums, row)
            else:
                _measure(last_positions(groups), num_targets, longest, ks, row)
    return out


@njit(cache=True, nogil=True)
def _length(k: float, longest: int) -> float:
    """Return the length of the list that precision is over."""
    return k if k < np.inf else float(max(longest, 1))


@njit(cache=True, nogil=True)
def _measure(
    positions: np.ndarray, num_targets: int, longest: int, ks: np.ndarray, row: np.ndarray
) -> None:
    """Fill a row with the metrics at each k of targets whose positions are settled."""
    for n in range(ks.size):
        k, at = ks[n], 6 * n
        row[at] = hit_rate(positions, num_targets, k)
        row[at + 1] = recall(positions, num_targets, k)
        row[at + 2] = precision(positions, num_targets, _length(k, longest))
        row[at + 3] = ndcg(positions, num_targets, k)
        row[at + 4] = average_precision(positions, num_targets, k)
        row[at + 5] = reciprocal_rank(positions, num_targets, k)


@njit(cache=True, nogil=True)
def _expect(
    groups: TieGroups,
    num_targets: int,
    longest: int,
    ks: np.ndarray,
    sums: np.ndarray,
    row: np.ndarray,
) -> None:
    """Fill a row with the expectations at each k over the orders of equal scores."""
    for n in range(ks.size):
        k, at = ks[n], 6 * n
        hits = expected_hits(groups, k)
        row[at] = expected_hit_rate(groups, k)
        row[at + 1] = hits / num_targets
        row[at + 2] = hits / _length(k, longest)
        row[at + 3] = expected_gain(groups, k, sums) / ideal_gain(num_targets, k)
        total = expected_precisions(groups, k, sums)
        row[at + 4] = total / min(float(num_targets), k)
        row[at + 5] = expected_reciprocal_rank(groups, k, sums)
