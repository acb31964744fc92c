"""Negatives of events, drawn in one pass over the events of many users.

Rows come user by user: first the user's own positives, then their explicit negatives, then the
positive events. What is held does not grow with a user's events: numbers per item, whose marks
name the user they were set for and so need no clearing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from recs.errors import UserError
from recs.sampling.groups import Groups
from recs.sampling.hashing import hash_bits, hash_stream, to_unit

#: Random tries of a positive are so many a negative, and a few more; then comes the exact draw.
_TRIES, _MORE_TRIES = 8, 32

#: What the lower 32 bits of a key say of its row; from EVENT on, EVENT + the event's sequence.
POSITIVES, EXPLICIT, EVENT = 0, 1, 2

_UNKNOWN_ITEM, _UNKNOWN_POSITIVE, _SHORTAGE = 1, 2, 3
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Negatives(NamedTuple):
    """Negatives of E events.

    Attributes
    ----------
    rows : int64[E]
        Which of the rows given are the events.
    offsets : int32[E+1]
    items : int32[nnz]
        Event e's negatives are ``items[offsets[e]:offsets[e + 1]]``, in order of drawing.
    """

    rows: np.ndarray
    offsets: np.ndarray
    items: np.ndarray


class _State(NamedTuple):
    """What is carried from row to row and from batch to batch.

    ``user`` [5]: the present user, the user's mark, how many positives and explicit items, and
    whether these were shuffled.
    ``marks`` [N]: ``mark`` of positives and, while an event draws, of the items it has;
    ``mark + 1`` of explicit items. ``positives``, ``explicit`` [N]: the user's, where explicit
    negatives are dealt. ``turn`` [N]: place of a positive item in the deal; -1 once it had it.
    ``free_for`` [G]: mark of the user that a group's ``free_count`` [G], ``free`` and
    ``cumulative`` [P] (the slots left to the user and the running sum of their weights) hold for.
    """

    user: np.ndarray
    marks: np.ndarray
    positives: np.ndarray
    explicit: np.ndarray
    turn: np.ndarray
    free_for: np.ndarray
    free_count: np.ndarray
    free: np.ndarray
    cumulative: np.ndarray


class EventStream:
    """Draws the negatives of a stream of events.

    A positive gets explicit negatives of its user first: they are dealt out once each, in hashed
    order, over the user's different positive items, at most ``size`` to one; the first event of an
    item takes them. The rest is drawn without replacement: one of the positive's groups by hash,
    an item of it by weight, unless the user wants it. After a bounded number of tries it is drawn
    exactly from the items of these groups that are left, which are listed once a user and group.

    Parameters
    ----------
    groups
        What is drawn from.
    size
        m, negatives wanted of an event.
    seed
        Draws are hashed from (seed, user, sequence of the event, draw).
    explicit
        Whether there will be rows of explicit negatives.
    fewer
        Whether an event may end with fewer than ``size``.
    """

    def __init__(
        self, groups: Groups, size: int, *, seed: int, explicit: bool = False, fewer: bool = True
    ) -> None:
        self._groups, self._size, self._seed, self._fewer = groups, size, seed, fewer
        num_items, num_groups = groups.of_starts.size - 1, groups.starts.size - 1
        num_dealt = num_items if explicit else 0
        self._state = _State(
            np.array([-1, 0, 0, 0, 0]),
            np.zeros(num_items, np.int32),
            np.empty(num_dealt, np.int32),
            np.empty(num_dealt, np.int32),
            np.empty(num_dealt, np.int32),
            np.zeros(num_groups, np.int32),
            np.zeros(num_groups, np.int32),
            np.empty(groups.items.size, np.int32),
            np.empty(groups.items.size, np.float64),
        )

    def draw(
        self, keys: np.ndarray, items: np.ndarray, lists: tuple[np.ndarray, np.ndarray]
    ) -> Negatives:
        """Draw for the next rows of the stream.

        Parameters
        ----------
        keys : int64[B]
            user_id << 32 | what the row is, ascending over all calls: :data:`POSITIVES`,
            :data:`EXPLICIT`, or :data:`EVENT` + sequence.
        items : int32[B]
            The item of an explicit negative or positive event.
        lists : (int64[B+1], int32[nnz])
            Offsets and items of the user's positives; empty in other rows.

        Raises
        ------
        UserError
            If an item is not in the vocabulary, a positive event's item is not among its user's
            positives or, unless ``fewer``, an event has not enough items to draw from.
        """
        num_events = int(np.count_nonzero((keys & 0xFFFFFFFF) >= EVENT))
        rows = np.empty(num_events, np.int64)
        offsets = np.zeros(num_events + 1, np.int32)
        drawn = np.empty(num_events * self._size, np.int32)
        problem, row = _draw_rows(
            keys, items, *lists, self._size, self._seed, self._fewer,
            self._groups, self._state, rows, offsets, drawn,
        )  # fmt: skip
        if problem:
            self._refuse(problem, int(keys[row]) >> 32, int(items[row]))
        return Negatives(rows, offsets, drawn[: offsets[-1]])

    def _refuse(self, problem: int, user: int, item: int) -> None:
        if problem == _SHORTAGE:
            raise UserError(
                f"user {user} has fewer than {self._size} items left to draw as negatives of item "
                f"{item}; ask for fewer (negatives.per_positive), loosen negatives.rules, or take "
                "what there is: negatives.shortage=fewer"
            )
        if problem == _UNKNOWN_POSITIVE:
            raise UserError(
                f"user {user} has a positive event of item {item}, which user_positives lacks; "
                "make user_positives of the same interactions"
            )
        raise UserError(
            f"rows of user {user} hold an item outside of the vocabulary's 0 to "
            f"{self._state.marks.size - 1}; make interactions and catalogue of the same vocabulary"
        )


@njit(cache=True, nogil=True)
def _draw_rows(
    keys: np.ndarray,
    items: np.ndarray,
    list_starts: np.ndarray,
    lists: np.ndarray,
    size: int,
    seed: int,
    fewer: bool,
    groups: Groups,
    state: _State,
    rows: np.ndarray,
    offsets: np.ndarray,
    drawn: np.ndarray,
) -> tuple[int, int]:
    """Fill ``rows``, ``offsets`` and ``drawn``; return a problem, or 0, and the row that has it."""
    user, marks, num_items = state.user, state.marks, state.marks.size
    event, end = 0, 0
    for row in range(keys.size):
        if keys[row] >> 32 != user[0]:
            user[0] = keys[row] >> 32
            user[1] += 2
            user[2:] = 0
        mark = np.int32(user[1])
        kind = keys[row] & 0xFFFFFFFF
        if kind == POSITIVES:
            for p in range(list_starts[row], list_starts[row + 1]):
                item = lists[p]
                if not 0 <= item < num_items:
                    return _UNKNOWN_ITEM, row
                if marks[item] != mark:
                    marks[item] = mark
                    if state.positives.size > 0:
                        state.positives[user[2]] = item
                        user[2] += 1
            continue
        item = items[row]
        if not 0 <= item < num_items:
            return _UNKNOWN_ITEM, row
        if kind == EXPLICIT:
            if marks[item] != mark and marks[item] != mark + 1:
                marks[item] = mark + 1
                state.explicit[user[3]] = item
                user[3] += 1
            continue
        if marks[item] != mark:
            return _UNKNOWN_POSITIVE, row
        start = end
        if user[3] > 0:
            if user[4] == 0:
                _shuffle(hash_stream(seed, user[0] << 32), state)
            end = _deal(item, start + size, state, drawn, start)
        end = _fill(
            hash_stream(seed, keys[row]), mark, item, groups, state, drawn, start, end, start + size
        )
        if end - start < size and not fewer:
            return _SHORTAGE, row
        rows[event] = row
        event += 1
        offsets[event] = end
    return 0, 0


@njit(cache=True, nogil=True)
def _shuffle(stream: np.uint64, state: _State) -> None:
    """Put the user's positives and explicit items in hashed order, for the deal."""
    state.user[4] = 1
    for count, items in ((state.user[2], state.positives), (state.user[3], state.explicit)):
        hashed = np.empty(count, np.uint64)
        for n in range(count):
            hashed[n] = hash_bits(stream, items[n])
        items[:count] = items[:count][np.argsort(hashed)]
    for n in range(state.user[2]):
        state.turn[state.positives[n]] = n


@njit(cache=True, nogil=True)
def _deal(item: int, stop: int, state: _State, drawn: np.ndarray, end: int) -> int:
    """Give a positive item the explicit negatives that are its own; return the new end."""
    turn = state.turn[item]
    if turn < 0:
        return end
    state.turn[item] = -1
    for n in range(turn, state.user[3], state.user[2]):
        if end == stop:
            break
        drawn[end] = state.explicit[n]
        end += 1
    return end


@njit(cache=True, nogil=True)
def _fill(
    stream: np.uint64,
    mark: np.int32,
    item: int,
    groups: Groups,
    state: _State,
    drawn: np.ndarray,
    start: int,
    end: int,
    stop: int,
) -> int:
    """Draw negatives of a positive item into ``drawn[end:stop]``, none of them in
    ``drawn[start:end]``; return the new end."""
    first = groups.of_starts[item]
    num_groups = groups.of_starts[item + 1] - first
    if num_groups == 0:
        return end
    marks = state.marks
    for n in range(start, end):
        marks[drawn[n]] = mark
    draw, limit = 0, _TRIES * (stop - start) + _MORE_TRIES
    while end < stop and draw < limit:
        bits = hash_bits(stream, draw)
        draw += 1
        g = groups.of[first]
        if num_groups > 1:
            g = groups.of[first + _below(num_groups, hash_bits(bits, 0))]
        slot = groups.starts[g]
        num_slots = groups.starts[g + 1] - slot
        if num_slots == 0:
            continue
        slot += _below(num_slots, bits)
        entry = groups.table[slot]
        own = (bits & _LOW) < (entry >> _HALF)
        chosen = groups.items[slot] if own else np.int32(entry & _LOW)
        if marks[chosen] != mark:
            marks[chosen] = mark
            drawn[end] = chosen
            end += 1
    for n in range(start, end):
        marks[drawn[n]] = 0
    while end < stop:
        g0 = _below(num_groups, hash_bits(stream, draw))
        point = to_unit(hash_bits(stream, draw + 1))
        draw += 2
        for n in range(num_groups):
            g = groups.of[first + (g0 + n) % num_groups]
            chosen = _draw_left(point, g, mark, groups, state, drawn[start:end])
            if chosen >= 0:
                break
        if chosen < 0:
            break
        drawn[end] = chosen
        end += 1
    return end


@njit(cache=True, nogil=True)
def _below(size: int, bits: np.uint64) -> int:
    """Return the number in [0, size) that the upper 32 of 64 random bits make, without division."""
    return int(((bits >> _HALF) * np.uint64(size)) >> _HALF)


@njit(cache=True, nogil=True)
def _draw_left(
    point: float, g: int, mark: np.int32, groups: Groups, state: _State, taken: np.ndarray
) -> int:
    """Draw by weight from the items of a group that the user does not want, without those taken.

    ``point`` in [0, 1) is stretched over the weights that are left and then moved past those of
    taken items. Returns -1 if none is left.
    """
    first = groups.starts[g]
    if state.free_for[g] != mark:
        _list_left(g, mark, groups, state)
    count = state.free_count[g]
    free, cumulative = state.free[first : first + count], state.cumulative[first : first + count]
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
def _list_left(g: int, mark: np.int32, groups: Groups, state: _State) -> None:
    """List the items of a group that the user does not want, and sum up their weights."""
    first = end = groups.starts[g]
    total = 0.0
    for slot in range(first, groups.starts[g + 1]):
        if state.marks[groups.items[slot]] != mark:
            total += groups.weights[slot]
            state.free[end] = groups.items[slot]
            state.cumulative[end] = total
            end += 1
    state.free_for[g] = mark
    state.free_count[g] = end - first
