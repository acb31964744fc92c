"""The Gram matrix G = AᵀA, dense, by blocks of rows: made once, read by every item's problem.

Two exact ways, and the cheaper one is taken:

- *bits*, for binary A: an item is a row of bits, one a user, and G_ij counts the ones that two
  rows share, 512 users an instruction. N² M / 64 word operations whatever A holds.
- *scatter*: G_i is the sum of the rows of A of the users who have i. Σ_u n_u² additions.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.extending import intrinsic

from recs.arrays.matrix import Csr, map_cached, new_array, read_array

#: Word operations of the bit way that cost as much as one addition of the scattering way.
WORDS_PER_ADDITION = 8


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
        _count_bits(_pack(by_item.indptr, by_item.indices, num_users), start, stop, out)
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


@njit(nogil=True, cache=True)
def _pack(indptr, indices, num_users):
    """Return a row of bits an item, padded to whole 512-bit registers."""
    bits = np.zeros((len(indptr) - 1, (num_users + 511) // 512 * 8), np.uint64)
    for item in range(len(bits)):
        for p in range(indptr[item], indptr[item + 1]):
            user = indices[p]
            bits[item, user >> 6] |= np.uint64(1) << np.uint64(user & 63)
    return bits


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
