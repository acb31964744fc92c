"""Draws without replacement from groups of items, past what a user must not get.

A bounded number of random tries comes first, one hash and one look-up each. What is missing then is
drawn exactly from the items that are left, which are listed once a user and group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from recs.sampling.groups import Groups
from recs.sampling.hashing import hash_bits, to_unit

#: Random tries are so many a negative, and a few more; then comes the exact draw.
_TRIES, _MORE_TRIES = 8, 32

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Workspace(NamedTuple):
    """What drawing writes to; a mark names its user and so needs no clearing.

    Attributes
    ----------
    marks : int32[N]
        ``mark`` of the user for whom an item is barred, or was drawn.
    listed_for, num_listed : int32[G]
        Mark of the user whose items left are listed of a group, and how many they are.
    listed, cumulative : int32[P], float64[P]
        The items left, in the group's slots, and the running sum of their weights.
    """

    marks: np.ndarray
    listed_for: np.ndarray
    num_listed: np.ndarray
    listed: np.ndarray
    cumulative: np.ndarray


def workspace(groups: Groups) -> Workspace:
    """Return the space that drawing from ``groups`` needs; marks are from 1."""
    num_items, num_groups = groups.of_starts.size - 1, groups.starts.size - 1
    return Workspace(
        np.zeros(num_items, np.int32),
        np.zeros(num_groups, np.int32),
        np.zeros(num_groups, np.int32),
        np.empty(groups.items.size, np.int32),
        np.empty(groups.items.size, np.float64),
    )


@njit(cache=True, nogil=True)
def num_tries(size: int) -> int:
    """Return how many random tries there are for so many negatives."""
    return _TRIES * size + _MORE_TRIES


@njit(cache=True, nogil=True)
def draw_by_tries(
    stream: np.uint64,
    tries: int,
    mark: np.int32,
    item: int,
    groups: Groups,
    space: Workspace,
    drawn: np.ndarray,
    end: int,
    stop: int,
) -> int:
    """Draw unmarked items into ``drawn[end:stop]`` and mark them, in so many tries at most.

    Each is of one of the groups of ``item`` by hash, and of its items by weight. Returns the new
    end. The draws of the stream from ``tries`` on are not used.
    """
    own = groups.of_starts[item]
    num_groups = groups.of_starts[item + 1] - own
    if num_groups == 0:
        return end
    draw = 0
    while end < stop and draw < tries:
        bits = hash_bits(stream, draw)
        draw += 1
        g = groups.of[own]
        if num_groups > 1:
            g = groups.of[own + _slot(num_groups, hash_bits(bits, 0))[0]]
        first, num_slots = groups.starts[g], groups.starts[g + 1] - groups.starts[g]
        if num_slots == 0:
            continue
        slot, coin = _slot(num_slots, bits)
        entry = groups.table[first + slot]
        chosen = groups.items[first + slot] if coin < entry >> _HALF else np.int32(entry & _LOW)
        if space.marks[chosen] != mark:
            space.marks[chosen] = mark
            drawn[end] = chosen
            end += 1
    return end


@njit(cache=True, nogil=True)
def draw_exactly(
    stream: np.uint64,
    draw: int,
    mark: np.int32,
    item: int,
    groups: Groups,
    space: Workspace,
    drawn: np.ndarray,
    start: int,
    end: int,
    stop: int,
) -> int:
    """Draw unmarked items into ``drawn[end:stop]``, none of them in ``drawn[start:end]``.

    Groups are those of ``item``; draws of the stream are used from ``draw`` on. The items left to a
    mark are listed once a group: what is marked with it must not change after that. Returns the new
    end, before ``stop`` where nothing is left.
    """
    own = groups.of_starts[item]
    num_groups = groups.of_starts[item + 1] - own
    while end < stop and num_groups > 0:
        g0 = _slot(num_groups, hash_bits(stream, draw))[0]
        point = to_unit(hash_bits(stream, draw + 1))
        draw += 2
        chosen = -1
        for n in range(num_groups):
            g = groups.of[own + (g0 + n) % num_groups]
            chosen = _draw_left(point, g, mark, groups, space, drawn[start:end])
            if chosen >= 0:
                break
        if chosen < 0:
            break
        drawn[end] = chosen
        end += 1
    return end


@njit(cache=True, nogil=True)
def _slot(size: int, bits: np.uint64) -> tuple[int, np.uint64]:
    """Return the whole part of size · bits / 2^64, and 32 bits of its fraction."""
    product = (bits >> _HALF) * np.uint64(size) + (((bits & _LOW) * np.uint64(size)) >> _HALF)
    return int(product >> _HALF), product & _LOW


@njit(cache=True, nogil=True)
def _draw_left(
    point: float, g: int, mark: np.int32, groups: Groups, space: Workspace, taken: np.ndarray
) -> int:
    """Draw by weight from the unmarked items of a group, without those taken.

    ``point`` in [0, 1) is stretched over the weights that are left and then moved past those of
    taken items. Returns -1 if none is left.
    """
    first = groups.starts[g]
    if space.listed_for[g] != mark:
        _list_left(g, mark, groups, space)
    count = space.num_listed[g]
    free, cumulative = space.listed[first : first + count], space.cumulative[first : first + count]
    places = np.empty(taken.size, np.int64)
    num_places, total = 0, 0.0 if count == 0 else cumulative[-1]
    for n in range(taken.size):
        place = np.searchsorted(free, taken[n])
        if place < count and free[place] == taken[n]:
            places[num_places] = place
            num_places += 1
            total -= cumulative[place] - (cumulative[place - 1] if place > 0 else 0.0)
    if num_places == count:
        return -1
    places = np.sort(places[:num_places])
    point *= total
    for place in places:
        before = cumulative[place - 1] if place > 0 else 0.0
        if point < before:
            break
        point += cumulative[place] - before
    place = min(np.searchsorted(cumulative, point, side="right"), count - 1)
    while np.any(places == place):  # where rounding put the point back onto a taken item
        place = (place + 1) % count
    return free[place]


@njit(cache=True, nogil=True)
def _list_left(g: int, mark: np.int32, groups: Groups, space: Workspace) -> None:
    """List the unmarked items of a group, and sum up their weights."""
    first = end = groups.starts[g]
    total = 0.0
    for slot in range(first, groups.starts[g + 1]):
        if space.marks[groups.items[slot]] != mark:
            total += groups.weights[slot]
            space.listed[end] = groups.items[slot]
            space.cumulative[end] = total
            end += 1
    space.listed_for[g] = mark
    space.num_listed[g] = end - first
