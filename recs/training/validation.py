"""Ranks of held-out targets among all items: exact, and the same for any number of processes.

They follow the rule of the protocol ``full`` (:mod:`recs.ranking.protocols`): where lists leave out
what users have seen, so do rankings, and a target that its user has seen is not ranked; elsewhere
what was seen stays a candidate. A training set knows the items that users have wanted, not those
that they have disliked, so that these stay candidates here, which ``recs rank`` leaves out.
Users without a history count as 0, as they do there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from recs.nn.network import Histories, SequenceNetwork
from recs.nn.samplers import UserPositives
from recs.nn.tables import Tables
from recs.training.settings import MOST_RANKS, Validation

#: Histories of a lane that are ranked at once; the same for any number of ranks, so that the
#: metric is too.
RANKED_A_LANE = 16


class HeldOut(NamedTuple):
    """Histories and the item that came next in each.

    Attributes
    ----------
    histories : Histories of B rows
    targets : int64[B]
        Negative in rows that only fill the batch up.
    seen
        What is left out of each row's ranking, a target among it too.
    """

    histories: Histories
    targets: Tensor
    seen: UserPositives


@torch.no_grad()
def rank_counts(
    network: SequenceNetwork, batches: Iterable[HeldOut], recommendable: Tensor
) -> Tensor:
    """Return int64[1 + ranks]: how many targets of this process have each rank, others at 0.

    Targets are ranked among the items that ``recommendable`` bool[N] marks and the row has not
    seen; another target has no rank. Equal scores count against the target. The scores of
    :data:`RANKED_A_LANE` histories of each process that shares the tables are held at once.
    """
    network.eval()
    tables, device = network.sizes.tables, recommendable.device
    hidden = ~recommendable[tables.rank :: tables.count]
    biases = network.item_biases()
    items = network.item_vectors().float(), None if biases is None else biases.float()
    counts = torch.zeros(MOST_RANKS + 1, dtype=torch.int64, device=device)
    for histories, targets, seen in batches:
        owners = torch.repeat_interleave(
            torch.arange(len(targets), device=device), seen.offsets.diff()
        )
        for first in range(0, len(targets), RANKED_A_LANE):
            rows = slice(first, first + RANKED_A_LANE)
            real = targets[rows] >= 0
            if not tables.sum(real.sum()):
                continue
            queries = network.queries(Histories(*(part[rows] for part in histories)))
            own = (owners >= first) & (owners < first + RANKED_A_LANE)
            pairs = owners[own] - first, seen.items[own].long()
            goals = targets[rows].clamp(min=0)
            ranks = _ranks(tables, items, hidden, queries.float(), goals, *pairs)
            repeats = torch.zeros_like(real)
            repeats[pairs[0][pairs[1] == goals[pairs[0]]]] = True
            ranked = recommendable[goals] & ~repeats & (ranks <= MOST_RANKS)
            counts += torch.bincount(torch.where(ranked, ranks, 0)[real], minlength=MOST_RANKS + 1)
    network.train()
    return counts


def _ranks(
    tables: Tables,
    items: tuple[Tensor, Tensor | None],
    hidden: Tensor,
    queries: Tensor,
    goals: Tensor,
    owners: Tensor,
    seen: Tensor,
) -> Tensor:
    """Return int64[b]: the rank of each query's goal among the items that it has not seen.

    Parameters
    ----------
    items : float[n, D], float[n] or None
        Vectors and biases of this process's items.
    hidden : bool[n]
        Those that are left out of all rankings.
    queries : float[b, D]
    goals : int64[b]
    owners, seen : int64[s]
        Pairs of a query and an item that is left out.
    """
    lengths, pairs = tables.lengths(len(queries)), tables.lengths(len(seen))
    # A process ranks all processes' goals among its own items.
    owners = tables.gather(owners + tables.own(lengths).start, pairs)
    rows, here = tables.local(tables.gather(seen, pairs))
    goal, goal_here = (part[:, None] for part in tables.local(tables.gather(goals, lengths)))
    vectors, biases = items
    scores = tables.gather(queries, lengths) @ vectors.T
    if biases is not None:
        scores = scores + biases
    found = tables.sum(scores.gather(1, goal).masked_fill(~goal_here, 0.0))
    scores[:, hidden] = -math.inf
    scores[owners[here], rows[here]] = -math.inf
    scores.scatter_(1, goal, torch.where(goal_here, -math.inf, scores.gather(1, goal)))
    # So that a score which is no number is the last, not the first.
    better = tables.sum((~(scores < found)).sum(1))
    return 1 + better[tables.own(lengths)]


def metric(counts: Tensor, settings: Validation, given_nothing: int = 0) -> float | None:
    """Return NDCG@k or HR@k of the counts of :func:`rank_counts`; None of no targets.

    The targets of further users, who are ``given_nothing``, count as 0.
    """
    targets = int(counts.sum())
    if not targets:
        return None
    hits = counts[1 : settings.k + 1].double().cpu()
    places = torch.arange(1, len(hits) + 1, dtype=torch.float64)
    gains = 1 / torch.log2(places + 1) if settings.metric == "ndcg" else torch.ones(len(hits))
    return float((hits * gains).sum() / (targets + given_nothing))
