"""Seeded randomness that depends on nothing but its keys, and negatives drawn with it.

A draw is a hash of (seed, purpose, key, index of the draw), the key a user's or an event's, so that
the same keys get the same negatives under any partitioning, in any order and on any machine.
Uniform and popularity-proportional negatives are one kernel: the alias method over the items'
weights, all equal or count^alpha.
"""

from recs.sampling.events import EVENT, EXPLICIT, WANTED, EventNegatives, EventStream
from recs.sampling.groups import Groups, group_items
from recs.sampling.hashing import hash_bits, hash_stream, to_unit
from recs.sampling.users import Sampler

__all__ = [
    "EVENT",
    "EXPLICIT",
    "WANTED",
    "EventNegatives",
    "EventStream",
    "Groups",
    "Sampler",
    "group_items",
    "hash_bits",
    "hash_stream",
    "to_unit",
]
