r"""A user's metrics from the positions of their targets.

The system's list of a user is all candidates in order of score. Of the user's T targets n were
ranked, at positions p_1 < p_2 < … < p_n (1 is best); T − n were not and count as never found. k is
the length of the list looked at, ``inf`` for the whole of it. All metrics are in [0, 1], and a user
without any ranked target has 0 in each.

Positions come from ranks by :func:`positions_of`, which settles equal scores.

The functions are compiled by numba and are what the Spark jobs run; ``positions`` is float64[n],
ascending.
"""

from __future__ import annotations

import numpy as np
from numba import njit

#: Of :func:`user_metrics`, in the order of its columns.
AT_K = ("hr", "recall", "precision", "ndcg", "map", "mrr")

#: How candidates of the target's score count: all of them before it, or half of them.
TIES = {"against": 1.0, "half": 0.5}


@njit(cache=True, nogil=True)
def positions_of(ranks: np.ndarray, ties: np.ndarray, share: float) -> np.ndarray:
    """Return the positions of one user's targets in the list, ties settled.

    Of the candidates that score the same as a target and are no targets themselves, ``share`` are
    placed before it: all of them (1.0, ties count against the model) or half (0.5, which may end
    between two places, and is within the first k as long as it lies before place k + 1). Targets
    that score the same as each other take places one after the other.

    Parameters
    ----------
    ranks, ties : int64[n]
        Of the ranked targets, ranks ascending: 1 + candidates scored above; other candidates
        scored the same, other targets included.
    share
        A value of :data:`TIES`.

    Returns
    -------
    float64[n]

    Examples
    --------
    One target with three others of its score, two above: it is somewhere from 3 to 6.

    >>> rank, ties = np.array([3]), np.array([3])
    >>> positions_of(rank, ties, 1.0), positions_of(rank, ties, 0.5)
    (array([6.]), array([4.5]))

    Two targets and one more candidate share the first three places: that one comes first.

    >>> positions_of(np.array([1, 1, 9]), np.array([2, 2, 0]), 1.0)
    array([2., 3., 9.])
    """
    positions = np.empty(ranks.size)
    start = 0
    while start < ranks.size:
        stop = start + 1
        while stop < ranks.size and ranks[stop] == ranks[start]:
            stop += 1
        # Never below 0: ranks of targets that were not candidates for each other need not add up.
        others = max(ties[start] - (stop - start - 1), 0)
        for j in range(start, stop):
            positions[j] = ranks[start] + share * others + (j - start)
        start = stop
    return positions


@njit(cache=True, nogil=True)
def hit_rate(positions: np.ndarray, num_targets: int, k: float) -> float:
    """HR@k = 1 if some target is among the first k, else 0.

    >>> hit_rate(np.array([3.0, 8.0]), 2, 3), hit_rate(np.array([3.0, 8.0]), 2, 2)
    (1.0, 0.0)
    """
    return 1.0 if positions.size > 0 and positions[0] < k + 1 else 0.0


@njit(cache=True, nogil=True)
def recall(positions: np.ndarray, num_targets: int, k: float) -> float:
    """Recall@k = |{j : p_j ≤ k}| / T.

    >>> recall(np.array([1.0, 3.0, 8.0]), 4, 5)
    0.5
    """
    return float(np.sum(positions < k + 1) / num_targets)


@njit(cache=True, nogil=True)
def precision(positions: np.ndarray, num_targets: int, k: float) -> float:
    """Precision@k = |{j : p_j ≤ k}| / k. Lists shorter than k are not excused.

    The precision of a whole list is that at k = its number of candidates.

    >>> precision(np.array([1.0, 3.0, 8.0]), 4, 5)
    0.4
    """
    return float(np.sum(positions < k + 1) / k)


@njit(cache=True, nogil=True)
def ndcg(positions: np.ndarray, num_targets: int, k: float) -> float:
    """NDCG@k = Σ_{p_j ≤ k} 1/log2(1 + p_j) / Σ_{j ≤ min(T, k)} 1/log2(1 + j).

    Gains are binary; the denominator is the DCG of a list that starts with all T targets
    (Järvelin and Kekäläinen 2002).

    Targets at 1 and 3 of two: (1 + 1/2) / (1 + 1/log2 3) = 1.5 / 1.63093.

    >>> round(ndcg(np.array([1.0, 3.0]), 2, 10), 5)
    0.91972
    """
    gain, ideal = 0.0, 0.0
    for p in positions:
        if p < k + 1:
            gain += 1.0 / np.log2(1.0 + p)
    for j in range(1, int(min(float(num_targets), k)) + 1):
        ideal += 1.0 / np.log2(1.0 + j)
    return gain / ideal


@njit(cache=True, nogil=True)
def average_precision(positions: np.ndarray, num_targets: int, k: float) -> float:
    """AP@k = Σ_{p_j ≤ k} (j / p_j) / min(T, k); its mean over users is MAP@k.

    Targets at 1 and 3 of two: (1/1 + 2/3) / 2.

    >>> round(average_precision(np.array([1.0, 3.0]), 2, 10), 5)
    0.83333
    """
    total = 0.0
    for j in range(positions.size):
        if positions[j] < k + 1:
            total += (j + 1) / positions[j]
    return total / min(float(num_targets), k)


@njit(cache=True, nogil=True)
def reciprocal_rank(positions: np.ndarray, num_targets: int, k: float) -> float:
    """RR@k = 1 / p_1 if p_1 ≤ k, else 0; its mean over users is MRR@k.

    >>> reciprocal_rank(np.array([4.0, 5.0]), 2, 10), reciprocal_rank(np.array([4.0]), 1, 3)
    (0.25, 0.0)
    """
    return 1.0 / positions[0] if positions.size > 0 and positions[0] < k + 1 else 0.0


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
def user_metrics(
    offsets: np.ndarray,
    ranks: np.ndarray,
    ties: np.ndarray,
    candidates: np.ndarray,
    counted: np.ndarray,
    ks: np.ndarray,
    share: float,
) -> np.ndarray:
    """Return all metrics of a block of users.

    Parameters
    ----------
    offsets : int64[B+1]
        User b's targets are ``offsets[b]:offsets[b + 1]``, in any order.
    ranks, ties, candidates : int64[T]
        As in table ranks; rank 0 where the target was not ranked.
    counted : bool[T]
        Targets that are measured; the others only take up their places, before those of the same
        score that are measured.
    ks : float64[K]
        Lengths of the list, inf for the whole.
    share
        A value of :data:`TIES`.

    Returns
    -------
    float64[B, 6K + 1]
        For each k the metrics of :data:`AT_K`, then AUC; 0 for a user without counted targets.
    """
    num_users = offsets.size - 1
    out = np.zeros((num_users, 6 * ks.size + 1))
    for u in range(num_users):
        start, stop = offsets[u], offsets[u + 1]
        keys = 2 * ranks[start:stop] + counted[start:stop]
        order = start + np.argsort(keys, kind="mergesort")
        order = order[ranks[order] > 0]
        everywhere = positions_of(ranks[order], ties[order], share)
        chosen = np.flatnonzero(counted[order])
        positions = everywhere[chosen]
        num_targets = np.sum(counted[start:stop])
        if num_targets == 0:
            continue
        longest = candidates[start:stop].max()
        for n in range(ks.size):
            k, at = ks[n], 6 * n
            out[u, at] = hit_rate(positions, num_targets, k)
            out[u, at + 1] = recall(positions, num_targets, k)
            length = k if k < np.inf else float(max(longest, 1))
            out[u, at + 2] = precision(positions, num_targets, length)
            out[u, at + 3] = ndcg(positions, num_targets, k)
            out[u, at + 4] = average_precision(positions, num_targets, k)
            out[u, at + 5] = reciprocal_rank(positions, num_targets, k)
        out[u, 6 * ks.size] = auc(positions - 1.0 - chosen, num_targets, longest - order.size)
    return out
