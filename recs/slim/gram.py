"""The Gram matrix G = AᵀA: a table of its head, and A itself for the rest; how the table is made.

Items are numbered by popularity. Among the first H, the *head*, G is a dense table. Whatever
touches one of the others, the *tail*, is computed from A, where that is cheap: an item of the tail
has few users, and a user's tail items are the end of an ascending list.

================  ==================================================================================
G_i               the table's row, and the tail ends of the histories of i's users; all of those
                  histories for an i of the tail
G among some      the table, and a walk of the histories of the users of every tail item
Σ_k G_jk w_k      for j of the head: the table for k of the head; the users of every k of the tail
                  add w_k to the head items of their histories. For j of the tail: A w is made for
                  the users of such j, from the weighted items' users or from those users'
                  histories, whichever is the shorter way, and summed over the users of j
================  ==================================================================================

With H = N there is no tail, and A is not looked at.

The table is made once, by blocks of rows, and read by every item's problem. There are two exact
ways, and the cheaper one is taken:

- *bits*, for binary A: an item is a row of bits, one a user, and G_ij counts the ones that two
  rows share, 512 users an instruction. N² M / 64 word operations whatever A holds.
- *scatter*: G_i is the sum of the rows of A of the users who have i. Σ_u n_u² additions.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import intrinsic

from recs.arrays.compiling import compiled_once
from recs.arrays.matrix import Csr, map_cached, new_array, read_array

#: What the compiler may do with sums: change their order, which none of them minds.
FAST = {"contract", "reassoc", "nsz"}

#: Word operations of the bit way that cost as much as one addition of the scattering way.
WORDS_PER_ADDITION = 8

_OFFSETS, _IDS, _VALUES = np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)


class Gram(NamedTuple):
    """G = AᵀA, items by popularity; ``Gram(table)`` is one without a tail.

    ``head`` [H, H], any integer or float type. ``*_indptr`` int64, ``user_items`` and
    ``item_users`` int32, ascending within a row, ``*_values`` float32 > 0, or empty when every
    value is 1. ``user_tail`` int64 [U]: where the tail of a user's row begins.
    """

    head: np.ndarray
    user_indptr: np.ndarray = _OFFSETS
    user_tail: np.ndarray = _OFFSETS[:0]
    user_items: np.ndarray = _IDS
    user_values: np.ndarray = _VALUES
    item_indptr: np.ndarray = _OFFSETS
    item_users: np.ndarray = _IDS
    item_values: np.ndarray = _VALUES


class Scratch(NamedTuple):
    """Working memory of a source, U and N long; ``scores`` and ``weights`` are 0 between calls."""

    scores: np.ndarray  # A w, of the users in use
    users: np.ndarray  # those users
    tail_users: np.ndarray  # the users of the tail candidates of an item
    seen: np.ndarray  # the last problem that had a user among its tail_users
    weights: np.ndarray  # w by item


#: Bytes of a Scratch for each user and for each item.
SCRATCH_A_USER, SCRATCH_AN_ITEM = 8 + 4 + 4 + 4, 8


@njit(nogil=True, cache=True)
def new_scratch(source, num_items):
    users = len(source.user_tail)
    return Scratch(
        np.zeros(users),
        np.empty(users, np.int32),
        np.empty(users, np.int32),
        np.full(users, -1, np.int32),
        np.zeros(num_items if users > 0 else 0),
    )


@compiled_once()
@njit(nogil=True, cache=True)
def tail_starts(user_indptr, user_items, head):
    """Return where each user's items ≥ ``head`` begin."""
    starts = np.empty(len(user_indptr) - 1, np.int64)
    for u in range(len(starts)):
        begin, end = user_indptr[u], user_indptr[u + 1]
        starts[u] = begin + np.searchsorted(user_items[begin:end], head)
    return starts


@njit(nogil=True, cache=True)
def gram_row(source, i, row, touched):
    """Write G_i to ``row`` [N], zero before; return the number of ``touched`` items.

    These are the tail items with G_ij > 0, for an i of the tail all such items, in no order.
    """
    head = len(source.head)
    if i < head:
        gram = source.head[i]
        for j in range(head):
            row[j] = gram[j]
    count = 0
    if head == len(row):
        return count
    weighted = len(source.item_values) > 0
    for p in range(source.item_indptr[i], source.item_indptr[i + 1]):
        u = source.item_users[p]
        start = source.user_tail[u] if i < head else source.user_indptr[u]
        for q in range(start, source.user_indptr[u + 1]):
            j = source.user_items[q]
            if row[j] == 0.0:
                touched[count] = j
                count += 1
            if weighted:
                row[j] += np.float64(source.item_values[p]) * source.user_values[q]
            else:
                row[j] += 1.0
    return count


@njit(nogil=True, cache=True)
def clear_row(source, i, row, touched):
    if i < len(source.head):
        row[: len(source.head)] = 0.0
    for j in touched:
        row[j] = 0.0


@njit(nogil=True, cache=True)
def sub_gram(source, work, place, old, size, sub):
    """Write G among work[:size] to ``sub``, where a row or column is ≥ ``old``.

    ``place`` [N] is where an item is in ``work``, or -1.
    """
    head = len(source.head)
    new_head = False
    for a in range(size):
        if work[a] < head:
            new_head |= a >= old
            gram = source.head[work[a]]
            for b in range(old if a < old else 0, size):
                if work[b] < head:
                    sub[a, b] = gram[work[b]]
    weighted = len(source.item_values) > 0
    # An old item of the tail and a new one meet in the walk of the new one.
    for a in range(0 if new_head else old, size):
        i = work[a]
        if i < head:
            continue
        first = old if a < old else 0
        row = sub[a]
        row[first:size] = 0.0
        for p in range(source.item_indptr[i], source.item_indptr[i + 1]):
            u = source.item_users[p]
            for q in range(source.user_indptr[u], source.user_indptr[u + 1]):
                b = place[source.user_items[q]]
                if b >= first:
                    if weighted:
                        row[b] += np.float64(source.item_values[p]) * source.user_values[q]
                    else:
                        row[b] += 1.0
        for b in range(first, size):
            sub[b, a] = row[b]


@njit(nogil=True, cache=True)
def tail_users(source, n, candidates, scratch):
    """Gather the users of the tail items of problem ``n``; return how many, and their events."""
    count, events = 0, 0
    for j in candidates:
        for p in range(source.item_indptr[j], source.item_indptr[j + 1]):
            u = source.item_users[p]
            if scratch.seen[u] != n:
                scratch.seen[u] = n
                scratch.tail_users[count] = u
                count += 1
                events += source.user_indptr[u + 1] - source.user_indptr[u]
    return count, events


@njit(nogil=True, cache=True, fastmath=FAST)
def correlations(source, row, l1, candidates, num_head, users, active, w, active_head, r, scratch):
    """Write G_ij − λ − Σ_k G_jk w_k, k in ``active``, to r[j] for every candidate j.

    ``candidates`` ascending, ``num_head`` of them of the head; ``users`` as :func:`tail_users`
    returned; the first ``active_head`` of ``active`` are those of the head.
    """
    if num_head > 0:
        _head_on_head(
            source.head, row, l1, candidates[:num_head], active[:active_head], w[:active_head], r
        )
    num_users, count = 0, 0
    if active_head < len(active):
        for k in range(active_head, len(active)):
            num_users = _add_scores(source, active[k], w[k], scratch, num_users)
        if num_head > 0:
            _tail_on_head(source, num_users, r, scratch)
    if num_head < len(candidates):
        cost = 0
        for k in range(active_head):
            cost += source.item_indptr[active[k] + 1] - source.item_indptr[active[k]]
        if users[1] < cost:
            count = users[0]
            _score_users(source, count, active, w, scratch)
        else:
            for k in range(active_head):
                num_users = _add_scores(source, active[k], w[k], scratch, num_users)
        for c in range(num_head, len(candidates)):
            j = candidates[c]
            r[j] = row[j] - l1 - _sum_scores(source, j, scratch)
    for n in range(num_users):
        scratch.scores[scratch.users[n]] = 0.0
    for n in range(count):
        scratch.scores[scratch.tail_users[n]] = 0.0


@njit(nogil=True, cache=True, fastmath=FAST)
def _head_on_head(gram, row, l1, candidates, active, w, r):
    width = candidates[-1] + 1
    if 8 * len(candidates) < width:
        for j in candidates:
            r[j] = row[j] - l1
        for k in range(len(active)):
            g, x = gram[active[k]], w[k]
            for j in candidates:
                r[j] -= x * g[j]
        return
    # Whole rows, four at a time: contiguous reads beat skipping those not asked for.
    for j in range(width):
        r[j] = row[j] - l1
    whole = len(active) // 4 * 4
    for k in range(0, whole, 4):
        g0, g1, g2, g3 = (
            gram[active[k]],
            gram[active[k + 1]],
            gram[active[k + 2]],
            gram[active[k + 3]],
        )
        x0, x1, x2, x3 = w[k], w[k + 1], w[k + 2], w[k + 3]
        for j in range(width):
            r[j] -= (x0 * g0[j] + x1 * g1[j]) + (x2 * g2[j] + x3 * g3[j])
    for k in range(whole, len(active)):
        g, x = gram[active[k]], w[k]
        for j in range(width):
            r[j] -= x * g[j]


@njit(nogil=True, cache=True)
def _add_scores(source, k, x, scratch, num_users):
    """scores += x a_k; list the users who had none before, and return the list's length."""
    weighted = len(source.item_values) > 0
    for p in range(source.item_indptr[k], source.item_indptr[k + 1]):
        u = source.item_users[p]
        if scratch.scores[u] == 0.0:
            scratch.users[num_users] = u
            num_users += 1
        scratch.scores[u] += x * source.item_values[p] if weighted else x
    return num_users


@njit(nogil=True, cache=True)
def _tail_on_head(source, num_users, r, scratch):
    """r -= Aᵀ scores, for items of the head."""
    weighted = len(source.user_values) > 0
    for n in range(num_users):
        u = scratch.users[n]
        x = scratch.scores[u]
        for q in range(source.user_indptr[u], source.user_tail[u]):
            r[source.user_items[q]] -= x * source.user_values[q] if weighted else x


@njit(nogil=True, cache=True)
def _score_users(source, count, active, w, scratch):
    """Write A w of the first ``count`` tail_users to scores, from their histories."""
    weighted = len(source.user_values) > 0
    for k in range(len(active)):
        scratch.weights[active[k]] = w[k]
    for n in range(count):
        u = scratch.tail_users[n]
        total = 0.0
        for q in range(source.user_indptr[u], source.user_indptr[u + 1]):
            x = scratch.weights[source.user_items[q]]
            total += x * source.user_values[q] if weighted else x
        scratch.scores[u] = total
    for k in active:
        scratch.weights[k] = 0.0


@njit(nogil=True, cache=True)
def _sum_scores(source, j, scratch):
    """Return a_jᵀ scores."""
    weighted = len(source.item_values) > 0
    total = 0.0
    for p in range(source.item_indptr[j], source.item_indptr[j + 1]):
        x = scratch.scores[source.item_users[p]]
        total += x * source.item_values[p] if weighted else x
    return total


# Making the table.


def gram_dtype(most_users: int, binary: bool) -> np.dtype:
    """Return the type of G's entries: exact counts where they fit 16 bits, else float32.

    ``most_users`` is that of the item that has the most, or anything above.
    """
    return np.dtype(np.uint16 if binary and most_users < 2**16 else np.float32)


def prefer_bits(num_users: int, num_items: int, nnz: int, binary: bool) -> bool:
    """Say whether the bit way is the cheaper one; it needs A by item only.

    The other way's Σ_u n_u² is at least nnz² / M (Cauchy-Schwarz), which is what is compared.
    """
    words = num_items**2 * num_users / 64
    return binary and words <= WORDS_PER_ADDITION * nnz**2 / num_users


def gram_rows(by_item: Csr, by_user: Csr | None, start: int, stop: int) -> np.ndarray:
    """Return the rows start … stop − 1 of G, [stop − start, N].

    ``by_user`` None asks for the bit way, which takes M N / 8 bytes beside the result. It may have
    more items than ``by_item``, which then is of the first ones only.
    """
    num_items, num_users = by_item.shape
    most_users = int(np.diff(by_item.indptr).max(initial=0))
    out = np.empty((stop - start, num_items), gram_dtype(most_users, by_item.data is None))
    if by_user is None:
        bits = _pack(by_item.indptr, by_item.indices, num_users)
        _count_bits(bits, start, stop, out)
    else:
        none = np.empty(0, np.float32)
        _scatter(
            by_item.indptr,
            by_item.indices,
            none if by_item.data is None else by_item.data,
            by_user.indptr,
            by_user.indices,
            none if by_user.data is None else by_user.data,
            start,
            out,
        )
    return out


def row_blocks(by_item: Csr, blocks: int) -> list[int]:
    """Return the bounds of blocks of rows that cost about the same: blocks + 1 numbers."""
    num_items = by_item.shape[0]
    cost = by_item.indptr + np.arange(num_items + 1) * (1 + by_item.indptr[-1] // num_items)
    bounds = np.searchsorted(cost, np.linspace(0, cost[-1], blocks + 1))
    return [*bounds[:-1].tolist(), num_items]


@functools.lru_cache(maxsize=1)  # a second one would stay in memory beside it
def open_gram(folder: str, shards: tuple[str, ...]) -> np.ndarray:
    """Map G [N, N] into memory, put together once a host from blocks of rows; N = 0 if none."""
    if not shards:
        return np.empty((0, 0), np.float32)

    def build(target: Path) -> None:
        whole: Any = None
        end = 0
        for shard in shards:
            rows = read_array(folder, shard)
            if whole is None:
                size = rows.shape[1]
                whole = new_array(target / "gram.npy", (size, size), rows.dtype)
            whole[end : end + len(rows)] = rows
            end += len(rows)

    return map_cached(folder, "\n".join(shards), build)["gram"]


@intrinsic
def _ones(typing_context, word):
    """Count the ones of a word: LLVM's ctpop, an instruction, and one for 8 words where it can."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return word(word), generate


@compiled_once()
@njit(nogil=True, cache=True)
def _pack(indptr, indices, num_users):
    """Return a row of bits an item, padded to whole 512-bit registers."""
    bits = np.zeros((len(indptr) - 1, (num_users + 511) // 512 * 8), np.uint64)
    for item in range(len(bits)):
        for p in range(indptr[item], indptr[item + 1]):
            user = indices[p]
            bits[item, user >> 6] |= np.uint64(1) << np.uint64(user & 63)
    return bits


@compiled_once("out")
@njit(nogil=True, cache=True)
def _count_bits(bits, start, stop, out):
    tile = 16  # rows that stay in the first-level cache while all others pass by
    for first in range(start, stop, tile):
        for j in range(len(bits)):
            theirs = bits[j]
            for i in range(first, min(first + tile, stop)):
                ours = bits[i]
                total = np.uint64(0)
                for k in range(len(ours)):
                    total += _ones(ours[k] & theirs[k])  # type: ignore[call-arg]
                out[i - start, j] = total


@compiled_once("out")
@njit(nogil=True, cache=True)
def _scatter(
    item_indptr, item_users, item_values, user_indptr, user_items, user_values, start, out
):
    weighted = len(user_values) > 0
    row = np.empty(out.shape[1])
    for i in range(start, start + len(out)):
        row[:] = 0.0
        for p in range(item_indptr[i], item_indptr[i + 1]):
            u = item_users[p]
            value = np.float64(item_values[p]) if weighted else 1.0
            for q in range(user_indptr[u], user_indptr[u + 1]):
                j = user_items[q]
                if j >= len(row):
                    break  # ascending: this and the rest are of the tail
                row[j] += value * user_values[q] if weighted else 1.0
        for j in range(len(row)):
            out[i - start, j] = row[j]
