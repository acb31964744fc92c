"""Seeded randomness that depends on nothing but its keys.

A stream of random words belongs to (seed, purpose, key), and a word of it to the index of the draw.
Each of the four is one step of SplitMix64: x is mixed anew as mix((x ^ number) + golden), beginning
with mix(seed + golden). :func:`recs.nn.samplers.random_bits` is the same chain in torch.

A purpose is what a stream is drawn for. Streams of different purposes have nothing in common even
where seeds and keys are equal: users who weigh much in a replicate of the bootstrap do not get
other candidates than the rest.
"""

from __future__ import annotations

import numpy as np
from numba import njit

#: Purposes, and what their keys are.
BOOTSTRAP = 1  # weights of users in replicates; key user_id
UNIFORM_CANDIDATES = 2  # that targets are ranked among; key user_id
POPULAR_CANDIDATES = 3  # the same, by popularity; key user_id
RELEVANCE_PAIRS = 4  # items drawn beside liked ones; key user_id
EVENT_NEGATIVES = 5  # of a positive event; key user_id << 32 | what the row is
EXPLICIT_DEAL = 6  # order in which a user's explicit negatives are dealt out; key user_id
TRAINING_NEGATIVES = 7  # drawn on the device; key the step, then the number of the place

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def _mix(x: np.uint64) -> np.uint64:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014), on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def hash_stream(seed: int, purpose: int, key: int) -> np.uint64:
    """Return the uint64 that the draws of (seed, purpose, key) are hashed from."""
    x = _mix(np.uint64(seed) + _GOLDEN)
    x = _mix((x ^ np.uint64(purpose)) + _GOLDEN)
    return _mix((x ^ np.uint64(key)) + _GOLDEN)


@njit(cache=True, nogil=True)
def hash_bits(stream: np.uint64, draw: int) -> np.uint64:
    """Return 64 random bits, the ``draw``-th of a stream; no two draws of a stream are equal."""
    return _mix((stream ^ np.uint64(draw)) + _GOLDEN)


@njit(cache=True, nogil=True)
def to_unit(bits: np.uint64) -> float:
    """Return the number in [0, 1) that the upper 53 of 64 random bits make."""
    return float(bits >> np.uint64(11)) * 2.0**-53
