"""Items in groups, each with an alias table: what negatives are drawn from.

Without rules there is one group of all items; with rules an item is in each group whose values it
has. Shapes: N items of the vocabulary, G groups, P pairs of a group and an item that may be drawn,
Q pairs of an item and a group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.errors import UserError

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Groups(NamedTuple):
    """Groups of items to draw from; all arrays are read-only.

    Attributes
    ----------
    starts : int64[G+1]
        Group g's slots are ``starts[g]:starts[g + 1]``; none, if none of its items may be drawn.
    items : int32[P]
        Item of each slot, ascending within a group.
    weights : float64[P]
        Their weights, above 0.
    table : uint64[P]
        :func:`alias_table` of each group, with items in place of slots.
    of_starts : int64[N+1]
    of : int32[Q]
        Groups of item i are ``of[of_starts[i]:of_starts[i + 1]]``, ascending.
    """

    starts: np.ndarray
    items: np.ndarray
    weights: np.ndarray
    table: np.ndarray
    of_starts: np.ndarray
    of: np.ndarray


def group_items(weights: np.ndarray, pairs: tuple[np.ndarray, np.ndarray] | None = None) -> Groups:
    """Return the groups of items that are drawn in proportion to their weights.

    Parameters
    ----------
    weights : float64[N]
        Of all items of the vocabulary, up to a factor; an item of weight 0 is never drawn.
    pairs : (int32[Q], int32[Q])
        Items and their groups, without repeats; None puts every item in one group.

    Raises
    ------
    UserError
        If no item can be drawn.
    """
    num_items = len(weights)
    weights = drawable(np.ascontiguousarray(weights, np.float64))
    if pairs is None:
        pairs = np.arange(num_items), np.zeros(num_items, np.int32)
    items, groups = (np.asarray(part, np.int32) for part in pairs)
    num_groups = int(groups.max(initial=-1)) + 1
    by_item = np.lexsort((groups, items))
    by_group = np.lexsort((items, groups))
    by_group = by_group[weights[items[by_group]] > 0]
    starts = np.searchsorted(groups[by_group], np.arange(num_groups + 1)).astype(np.int64)
    slots = items[by_group]
    made = Groups(
        starts,
        slots,
        weights[slots],
        _tables(starts, slots, weights[slots]),
        np.searchsorted(items[by_item], np.arange(num_items + 1)).astype(np.int64),
        groups[by_item],
    )
    for array in made:  # as arrays mapped from files are, so that kernels compile once
        array.flags.writeable = False
    return made


def drawable(weights: np.ndarray) -> np.ndarray:
    """Return ``weights`` if items can be drawn by them.

    Raises
    ------
    UserError
        If one is not finite or below 0, or all are 0.
    """
    if not weights.sum() > 0 or not np.isfinite(weights).all() or (weights < 0).any():
        raise UserError(
            f"no negatives can be drawn: {np.count_nonzero(weights)} recommendable items have a "
            f"weight, in total {weights.sum()}; give at least one a finite weight above 0"
        )
    return weights


@njit(cache=True, nogil=True)
def alias_table(weights: np.ndarray) -> np.ndarray:
    """Return Vose's alias table of weights, uint64[P].

    Slot p yields p if 32 random bits are below the upper half of its entry, else the slot in the
    lower half.
    """
    size = weights.size
    scaled = weights * (size / weights.sum())
    accept = np.ones(size)
    alias = np.arange(size).astype(np.int32)
    small, large = np.empty(size, np.int32), np.empty(size, np.int32)
    num_small, num_large = 0, 0
    for p in range(size):
        if scaled[p] < 1.0:
            small[num_small] = p
            num_small += 1
        else:
            large[num_large] = p
            num_large += 1
    while num_small > 0 and num_large > 0:
        num_small -= 1
        low, high = small[num_small], large[num_large - 1]
        accept[low], alias[low] = scaled[low], high
        scaled[high] -= 1.0 - scaled[low]
        if scaled[high] < 1.0:
            num_large -= 1
            small[num_small] = high
            num_small += 1
    table = np.empty(size, np.uint64)
    for p in range(size):
        threshold = np.uint64(min(accept[p] * 2.0**32, 2.0**32 - 1.0))
        table[p] = (threshold << _HALF) | np.uint64(alias[p])
    return table


@compiled_once()
@njit(cache=True, nogil=True)
def _tables(starts: np.ndarray, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the alias table of each group, with items in place of slots."""
    table = np.empty(items.size, np.uint64)
    for g in range(starts.size - 1):
        first = starts[g]
        entries = alias_table(weights[first : starts[g + 1]])
        for p in range(entries.size):
            item = items[first + np.int64(entries[p] & _LOW)]
            table[first + p] = (entries[p] >> _HALF << _HALF) | np.uint64(item)
    return table
