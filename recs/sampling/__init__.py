"""Seeded randomness that depends on nothing but its keys, and negatives drawn with it.

A draw is a hash of (seed, user, index of the draw), for negatives of events of (seed, user, place
of the event, index), so that the same keys get the same negatives under any partitioning, in any
order and on any machine. Uniform and popularity-proportional negatives are one kernel: the alias
method over the items' weights, all equal or count^alpha.
"""

from recs.sampling.events import EVENT, EXPLICIT, POSITIVES, EventStream, Negatives
from recs.sampling.groups import Groups, group_items
from recs.sampling.hashing import hash_bits, hash_stream, hash_uniform
from recs.sampling.users import Sampler

__all__ = [
    "EVENT",
    "EXPLICIT",
    "POSITIVES",
    "EventStream",
    "Groups",
    "Negatives",
    "Sampler",
    "group_items",
    "hash_bits",
    "hash_stream",
    "hash_uniform",
]
