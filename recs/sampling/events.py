"""Negatives of events, drawn in one pass over the events of many users.

Rows come user by user: first the user's own positives, then their explicit negatives, then the
positive events. What is held does not grow with a user's events: numbers per item, whose marks
name the user they were set for and so need no clearing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from recs.arrays.compiling import compiled_once
from recs.errors import UserError
from recs.sampling.draws import Workspace, draw_by_tries, draw_exactly, num_tries, workspace
from recs.sampling.groups import Groups
from recs.sampling.hashing import EVENT_NEGATIVES, EXPLICIT_DEAL, hash_bits, hash_stream

#: What the lower 32 bits of a key say of its row; from EVENT on, EVENT + the event's sequence.
WANTED, EXPLICIT, EVENT = 0, 1, 2

_UNKNOWN_ITEM, _UNKNOWN_POSITIVE, _SHORTAGE = 1, 2, 3


class EventNegatives(NamedTuple):
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
    ``space``, in whose marks ``mark`` stands for positives and, while an event draws, for the items
    it has; ``mark + 1`` for explicit items. ``positives``, ``explicit`` [N]: the user's, where
    explicit negatives are dealt. ``turn`` [N]: place of a positive item in the deal; -1 once it had
    it.
    """

    user: np.ndarray
    space: Workspace
    positives: np.ndarray
    explicit: np.ndarray
    turn: np.ndarray


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
        num_dealt = groups.of_starts.size - 1 if explicit else 0
        self._state = _State(
            np.array([-1, 0, 0, 0, 0]),
            workspace(groups),
            np.empty(num_dealt, np.int32),
            np.empty(num_dealt, np.int32),
            np.empty(num_dealt, np.int32),
        )

    def draw(
        self, keys: np.ndarray, items: np.ndarray, lists: tuple[np.ndarray, np.ndarray]
    ) -> EventNegatives:
        """Draw for the next rows of the stream.

        Parameters
        ----------
        keys : int64[B]
            user_id << 32 | what the row is, ascending over all calls: :data:`WANTED`,
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
        return EventNegatives(rows, offsets, drawn[: offsets[-1]])

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
            f"{self._state.space.marks.size - 1}; make interactions and catalogue of the same "
            "vocabulary"
        )


@compiled_once("rows", "offsets", "drawn")
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
    user, space = state.user, state.space
    marks, num_items = space.marks, space.marks.size
    event, end = 0, 0
    for row in range(keys.size):
        if keys[row] >> 32 != user[0]:
            user[0] = keys[row] >> 32
            user[1] += 2
            user[2:] = 0
        mark = np.int32(user[1])
        kind = keys[row] & 0xFFFFFFFF
        if kind == WANTED:
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
                _shuffle(hash_stream(seed, EXPLICIT_DEAL, user[0]), state)
            end = _deal(item, start + size, state, drawn, start)
        stream = hash_stream(seed, EVENT_NEGATIVES, keys[row])
        end = _fill(stream, mark, item, groups, space, drawn, start, end, start + size)
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
    space: Workspace,
    drawn: np.ndarray,
    start: int,
    end: int,
    stop: int,
) -> int:
    """Draw negatives of an event into ``drawn[end:stop]``, none of them in ``drawn[start:end]``.

    The items that the event has are marked as the user's positives are while it draws.
    """
    for n in range(start, end):
        space.marks[drawn[n]] = mark
    tries = num_tries(stop - start)
    end = draw_by_tries(stream, tries, mark, item, groups, space, drawn, end, stop)
    for n in range(start, end):
        space.marks[drawn[n]] = 0
    if end < stop:
        end = draw_exactly(stream, tries, mark, item, groups, space, drawn, start, end, stop)
    return end
