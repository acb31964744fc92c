r"""Equal scores in a user's list, and expectations of metrics over random orders of them.

Candidates of one score share a run of places. A *tie group* is such a run with a target that is
measured in it: it begins at place a + 1 and has g places, c of which go to measured targets, all
choices of c places being equally likely. Groups take places of their own, so that the orders within
them are independent. With n = min(k − a, g) of a group's places within the first k, and C(·, ·) for
binomial coefficients:

- HR@k = 1 − Π_groups C(g − n, c) / C(g, c);
- Recall@k, Precision@k: Σ_groups c·n/g targets are within k;
- DCG@k = Σ_groups (c/g) Σ_{i ≤ n} 1/log2(1 + a + i);
- AP@k: place i holds a target with probability c/g, and then (i − 1)(c − 1)/(g − 1) further ones of
  the group are expected before it, beside all J of earlier groups:
  Σ_groups (c/g) Σ_{i ≤ n} (J + 1 + (i − 1)(c − 1)/(g − 1)) / (a + i);
- RR@k = Σ_{i ≤ n} C(g − i, c − 1)/C(g, c) / (a + i) of the first group alone: its first target is
  at place i. The sum has at most k terms; for a whole list it is R_c of the recursion
  R_m = m ((g + a − m + 2) R_{m−1} − 1) / ((m − 1)(g − m + 1)), R_1 = (1/g) Σ_{i ≤ g} 1/(a + i),
  which takes c steps, unless rounding would grow by it: then it is summed, over at most g terms.

All else is closed: sums of 1/p and of 1/log2(1 + p) over long runs are differences of running sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

#: Runs of more places are looked up in running sums.
_LONG = 64
#: Rounding of the first term of the recursion of RR, and what it may grow to.
_ROUNDING, _TOLERANCE = 1e-15, 1e-11


class TieGroups(NamedTuple):
    """The G tie groups of one user's measured targets, in order of place; int64[G] each.

    Attributes
    ----------
    first
        First place of the group, from 1.
    places
        Places of the group: its targets, measured or not, and the other candidates of the score.
    targets
        Measured targets among them, at least 1.
    others
        Candidates among them that are no targets.
    ahead
        Targets, measured or not, in all places before the group's.
    """

    first: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    others: np.ndarray
    ahead: np.ndarray


@njit(cache=True, nogil=True)
def tie_groups(ranks: np.ndarray, ties: np.ndarray, counted: np.ndarray) -> TieGroups:
    """Return the tie groups of one user's ranked targets.

    Parameters
    ----------
    ranks, ties : int64[n]
        Ascending by rank: 1 + candidates scored above; other candidates scored the same, other
        targets included.
    counted : bool[n]
        Targets that are measured.

    Examples
    --------
    Two targets and one more candidate share the first three places; only one target is measured.

    >>> groups = tie_groups(np.array([1, 1, 9]), np.array([2, 2, 0]), np.array([True, False, True]))
    >>> groups.first, groups.places, groups.targets
    (array([1, 9]), array([3, 1]), array([1, 1]))
    """
    found = np.empty((5, ranks.size), np.int64)
    num_groups, start = 0, 0
    while start < ranks.size:
        stop, targets = start, 0
        while stop < ranks.size and ranks[stop] == ranks[start]:
            targets += counted[stop]
            stop += 1
        if targets > 0:
            # Never below 0: ranks of targets that were not candidates for each other need not add
            # up.
            others = max(ties[start] - (stop - start - 1), 0)
            found[0, num_groups] = ranks[start]
            found[1, num_groups] = stop - start + others
            found[2, num_groups] = targets
            found[3, num_groups] = others
            found[4, num_groups] = start
            num_groups += 1
        start = stop
    return TieGroups(
        found[0, :num_groups],
        found[1, :num_groups],
        found[2, :num_groups],
        found[3, :num_groups],
        found[4, :num_groups],
    )


@njit(cache=True, nogil=True)
def running_sums(places: int) -> np.ndarray:
    """Return float64[places + 1, 2]: Σ_{p ≤ row} of 1/p and of 1/log2(1 + p)."""
    sums = np.zeros((places + 1, 2))
    for p in range(1, places + 1):
        sums[p, 0] = sums[p - 1, 0] + 1.0 / p
        sums[p, 1] = sums[p - 1, 1] + 1.0 / np.log2(1.0 + p)
    return sums


@njit(cache=True, nogil=True)
def num_sums(groups: TieGroups) -> int:
    """Return the places that :func:`running_sums` must have for these groups, 0 for none."""
    longest = 0
    for g in range(groups.first.size):
        if groups.places[g] > _LONG:
            longest = max(longest, groups.first[g] + groups.places[g] - 1)
    return longest


@njit(cache=True, nogil=True)
def _reciprocals(above: int, places: int, sums: np.ndarray) -> float:
    """Return Σ 1/p over so many places after the first ``above``."""
    if places > _LONG:
        return sums[above + places, 0] - sums[above, 0]
    total = 0.0
    for p in range(above + 1, above + places + 1):
        total += 1.0 / p
    return total


@njit(cache=True, nogil=True)
def _discounts(above: int, places: int, sums: np.ndarray) -> float:
    """Return Σ 1/log2(1 + p) over so many places after the first ``above``."""
    if places > _LONG:
        return sums[above + places, 1] - sums[above, 1]
    total = 0.0
    for p in range(above + 1, above + places + 1):
        total += 1.0 / np.log2(1.0 + p)
    return total


@njit(cache=True, nogil=True)
def _within(groups: TieGroups, g: int, k: float) -> int:
    """Return how many places of group g are within the first k."""
    return int(min(max(k - groups.first[g] + 1, 0), groups.places[g]))


@njit(cache=True, nogil=True)
def expected_hit_rate(groups: TieGroups, k: float) -> float:
    """Return the probability that some measured target is within the first k.

    One of two candidates in places 10 and 11:

    >>> expected_hit_rate(tie_groups(np.array([10]), np.array([1]), np.array([True])), 10)
    0.5
    """
    missed = 1.0
    for g in range(groups.first.size):
        places, targets, within = groups.places[g], groups.targets[g], _within(groups, g, k)
        for n in range(min(targets, within)):
            missed *= (places - max(targets, within) - n) / (places - n)
    return 1.0 - missed


@njit(cache=True, nogil=True)
def expected_hits(groups: TieGroups, k: float) -> float:
    """Return how many measured targets are expected within the first k."""
    hits = 0.0
    for g in range(groups.first.size):
        hits += groups.targets[g] * _within(groups, g, k) / groups.places[g]
    return hits


@njit(cache=True, nogil=True)
def expected_gain(groups: TieGroups, k: float, sums: np.ndarray) -> float:
    """Return the expected DCG@k."""
    gain = 0.0
    for g in range(groups.first.size):
        discounts = _discounts(groups.first[g] - 1, _within(groups, g, k), sums)
        gain += groups.targets[g] / groups.places[g] * discounts
    return gain


@njit(cache=True, nogil=True)
def expected_precisions(groups: TieGroups, k: float, sums: np.ndarray) -> float:
    """Return the expectation of the sum of j / p_j over targets within k: AP@k times min(T, k)."""
    total, earlier = 0.0, 0
    for g in range(groups.first.size):
        above, places, targets = groups.first[g] - 1, groups.places[g], groups.targets[g]
        within = _within(groups, g, k)
        slope = (targets - 1) / max(places - 1, 1)
        # (i − 1) / (a + i) is 1 − (a + 1) / (a + i).
        constant = earlier + 1 - slope * (above + 1)
        reciprocals = _reciprocals(above, within, sums)
        total += targets / places * (constant * reciprocals + slope * within)
        earlier += targets
    return total


@njit(cache=True, nogil=True)
def expected_reciprocal_rank(groups: TieGroups, k: float, sums: np.ndarray) -> float:
    """Return the expected RR@k.

    A target in one of places 3 and 4: (1/3 + 1/4) / 2.

    >>> groups = tie_groups(np.array([3]), np.array([1]), np.array([True]))
    >>> round(expected_reciprocal_rank(groups, 10, running_sums(0)), 5)
    0.29167
    """
    above, places, targets = groups.first[0] - 1, groups.places[0], groups.targets[0]
    within = _within(groups, 0, k)
    if within == places:
        value, rounding = _reciprocals(above, places, sums) / places, _ROUNDING
        for m in range(2, targets + 1):
            factor = m / ((m - 1) * (places - m + 1))
            value = factor * ((places + above - m + 2) * value - 1.0)
            rounding *= factor * (places + above - m + 2)
        if rounding <= _TOLERANCE:
            return value
    total, chance = 0.0, targets / places  # that the first target is at place i of the group
    for i in range(1, min(within, places - targets + 1) + 1):
        total += chance / (above + i)
        left = places - i
        if chance * left <= _ROUNDING * total:  # more than all later terms together
            break
        chance *= (left - targets + 1) / left
    return total
