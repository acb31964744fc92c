"""Seeded randomness that depends on nothing but its keys."""

from __future__ import annotations

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def _mix(x: np.uint64) -> np.uint64:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014), on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def hash_stream(seed: int, key: int) -> np.uint64:
    """Return the uint64 that a key's draws are hashed from."""
    x = _mix(np.uint64(seed) + _GOLDEN)
    return _mix((x ^ np.uint64(key)) + _GOLDEN)


@njit(cache=True, nogil=True)
def hash_bits(stream: np.uint64, draw: int) -> np.uint64:
    """Return 64 random bits, the ``draw``-th of a stream; no two draws of a stream are equal."""
    return _mix((stream ^ np.uint64(draw)) + _GOLDEN)


@njit(cache=True, nogil=True)
def to_unit(bits: np.uint64) -> float:
    """Return the number in [0, 1) that the upper 53 of 64 random bits make."""
    return float(bits >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True)
def hash_uniform(seed: int, key: int, draw: int) -> float:
    """Return the uniform number in [0, 1) that belongs to (seed, key, draw), with 53 random bits.

    >>> hash_uniform(1, 2, 3) == hash_uniform(1, 2, 3) != hash_uniform(1, 2, 4)
    True
    """
    return to_unit(hash_bits(hash_stream(seed, key), draw))
