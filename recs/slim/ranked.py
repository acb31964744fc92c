"""A with its items numbered by popularity, by item and by user, mapped into memory once a host.

Spark writes A by item, under the items' own ids (:func:`recs.arrays.matrix.write_csr`); each host
makes the rest of that: a second shuffle of all events would cost more than a transposition.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from recs.arrays.matrix import Csr, CsrFiles, map_cached, new_array, read_array
from recs.storage import join


class Ranked(NamedTuple):
    """A, an item being its rank: 0 has the most users; of equals the lower id comes first.

    ``ids`` int32 [N] is the item of a rank, ``ranks`` int32 [N] the inverse; ``diagonal`` float64
    [N] is G_jj. ``by_item`` [N, U] and ``by_user`` [U, N] are in ranks.
    """

    ids: np.ndarray
    ranks: np.ndarray
    diagonal: np.ndarray
    by_item: Csr
    by_user: Csr


def host_bytes(num_users: int, num_items: int, num_entries: int, binary: bool) -> int:
    """Return the bytes of a :class:`Ranked`: 8 (U + 3 N) and 8 or 16 an entry."""
    return 8 * (num_users + 1 + 3 * num_items + 1) + (8 if binary else 16) * num_entries


def item_counts(by_item: CsrFiles) -> np.ndarray:
    """Return the number of users of each item, int64 [N]."""
    manifest = by_item.manifest
    counts = np.zeros(manifest["shape"][0], np.int64)
    for shard in manifest["shards"]:
        part = read_array(by_item.folder, f"{shard['name']}-counts.npy")
        counts[shard["start"] : shard["start"] + len(part)] = part
    return counts


def rank_items(counts: np.ndarray) -> np.ndarray:
    """Return the items from the most users to the fewest, of equals the lower id first."""
    return np.argsort(-counts, kind="stable").astype(np.int32)


def open_ranked(by_item: CsrFiles) -> Ranked:
    """Map A into memory; the first call on a host makes it there.

    Raises
    ------
    MatrixError
        If the folder holds no finished matrix.
    """
    return _open(by_item.folder, json.dumps(by_item.manifest))


@functools.lru_cache(maxsize=1)  # a second one would stay in memory beside it
def _open(folder: str, manifest_text: str) -> Ranked:
    manifest = json.loads(manifest_text)
    num_items, num_users = manifest["shape"]

    def build(target: Path) -> None:
        nnz = manifest["nnz"]
        counts = item_counts(CsrFiles(folder))
        ids = rank_items(counts)
        ranks = np.empty(num_items, np.int32)
        ranks[ids] = np.arange(num_items, dtype=np.int32)
        for name, array in (("ids", ids), ("ranks", ranks)):
            np.save(target / name, array)
        item_indptr = new_array(target / "item_indptr.npy", (num_items + 1,), np.int64)
        np.cumsum(counts[ids], out=item_indptr[1:])
        user_indptr = new_array(target / "user_indptr.npy", (num_users + 1,), np.int64)
        item_users = new_array(target / "item_users.npy", (nnz,), np.int32)
        user_items = new_array(target / "user_items.npy", (nnz,), np.int32)
        item_values = user_values = np.empty(0, np.float32)
        if manifest["dtype"]:
            item_values = new_array(target / "item_values.npy", (nnz,), np.float32)
            user_values = new_array(target / "user_values.npy", (nnz,), np.float32)
        for shard in manifest["shards"]:
            start, stop, name = shard["start"], shard["stop"], shard["name"]
            users = read_array(folder, f"{name}-indices.npy")
            begins = item_indptr[ranks[start:stop]]
            _place(users, counts[start:stop], begins, item_users)
            if manifest["dtype"]:
                binary = shard["least"] == shard["greatest"] == 1
                ones = np.ones(len(users), np.float32)
                values = ones if binary else read_array(folder, f"{name}-data.npy")
                _place(values, counts[start:stop], begins, item_values)
            user_indptr[1:] += np.bincount(users, minlength=num_users)
        np.cumsum(user_indptr, out=user_indptr)
        ends = np.array(user_indptr[:-1])
        _transpose(item_indptr, item_users, item_values, ends, user_items, user_values)
        diagonal = counts[ids].astype(np.float64)
        if manifest["dtype"]:
            _norms(item_indptr, item_values, diagonal)
        np.save(target / "diagonal.npy", diagonal)

    arrays = map_cached(join(folder, "ranked"), manifest_text, build)
    return Ranked(
        arrays["ids"],
        arrays["ranks"],
        arrays["diagonal"],
        Csr(
            arrays["item_indptr"],
            arrays["item_users"],
            arrays.get("item_values"),
            (num_items, num_users),
        ),
        Csr(
            arrays["user_indptr"],
            arrays["user_items"],
            arrays.get("user_values"),
            (num_users, num_items),
        ),
    )


@njit(nogil=True, cache=True)
def _place(rows, counts, begins, out):
    """Copy rows that lie one after the other to where each begins in ``out``."""
    p = 0
    for n in range(len(counts)):
        for k in range(counts[n]):
            out[begins[n] + k] = rows[p]
            p += 1


@njit(nogil=True, cache=True)
def _transpose(item_indptr, item_users, item_values, ends, user_items, user_values):
    """Deal the items, in order, to their users' rows, of which each ends at ``ends`` [U] so far."""
    for item in range(len(item_indptr) - 1):
        for p in range(item_indptr[item], item_indptr[item + 1]):
            u = item_users[p]
            user_items[ends[u]] = item
            if len(item_values) > 0:
                user_values[ends[u]] = item_values[p]
            ends[u] += 1


@njit(nogil=True, cache=True)
def _norms(indptr, values, out):
    for item in range(len(out)):
        total = 0.0
        for p in range(indptr[item], indptr[item + 1]):
            total += np.float64(values[p]) * values[p]
        out[item] = total
