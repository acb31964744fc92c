"""How the memory of a host is shared out: A, the head of G, and what each worker solves with."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np

from recs.errors import UserError
from recs.slim import gram, solver

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Users that an item must have to be worth a row in the table: fewer are walked as fast.
LEAST_HEAD_USERS = 16

#: A table up to this size is made of all items.
SMALL_TABLE = 64 * 2**20


class BudgetError(UserError):
    """A problem that does not fit the memory that it is given."""


@dataclass(frozen=True)
class Plan:
    """What fits a budget.

    Attributes
    ----------
    head
        H: items whose G is a table.
    max_working_set
        Items of a working set at the most.
    matrix_bytes, table_bytes, scratch_bytes
        A by item and by user, mapped once a host; the table, too; each worker's own arrays.
    """

    head: int
    max_working_set: int
    matrix_bytes: int
    table_bytes: int
    scratch_bytes: int


def host_bytes(num_users: int, num_items: int, num_entries: int, binary: bool) -> int:
    """Return the bytes of a :class:`recs.slim.hosted.Ranked`: 8 (U + 3 N) and 8 or 16 an entry."""
    return 8 * (num_users + 1 + 3 * num_items + 1) + (8 if binary else 16) * num_entries


def plan(counts: np.ndarray, num_users: int, binary: bool, *, budget: int, workers: int) -> Plan:
    """Share ``budget`` bytes of a host out among A, the table and ``workers`` workers.

    A, the workers' arrays of a fixed size and a first working set a worker come first. A quarter of
    the rest, or more where the table needs less, is left to larger working sets.

    Parameters
    ----------
    counts
        int64 [N], the number of users of each item.

    Raises
    ------
    BudgetError
        If what comes first does not fit.
    """
    num_items, num_entries = len(counts), int(counts.sum())
    matrix = host_bytes(num_users, num_items, num_entries, binary)
    scratch = (gram.SCRATCH_A_USER + 8) * num_users
    scratch += (gram.SCRATCH_AN_ITEM + solver.SCRATCH_AN_ITEM) * num_items
    left = budget - matrix - workers * scratch
    least = workers * solver.SCRATCH_A_PAIR * solver.WORKING_SET**2
    if left < least:
        needed = -(-(budget - left + least) // 2**20)
        raise BudgetError(
            f"{num_entries} entries of {num_users} users and {num_items} items take {needed} MiB a "
            f"host with {workers} workers, and slim.memory_budget_mb is {budget // 2**20}: raise "
            "it, or set slim.max_neighbours, with which no host needs all of them"
        )
    itemsize = gram.gram_dtype(int(counts.max(initial=0)), binary).itemsize
    fits = isqrt((left - least) * 3 // 4 // itemsize)
    wanted = num_items
    if num_items**2 * itemsize > SMALL_TABLE:
        wanted = int((counts >= LEAST_HEAD_USERS).sum())
    head = min(fits, wanted)
    table = head**2 * itemsize
    pairs = (left - table) // (workers * solver.SCRATCH_A_PAIR)
    return Plan(head, min(isqrt(pairs), num_items), matrix, table, workers * scratch)


def workers_a_host(spark: SparkSession) -> int:
    """Return how many Python workers run side by side on a host, taken to have one executor."""
    local = re.fullmatch(r"local(?:\[(\d+|\*).*\])?", spark.conf.get("spark.master", "") or "")
    cores = local.group(1) or "1" if local else spark.conf.get("spark.executor.cores", None)
    slots = int(cores) if cores and cores != "*" else os.cpu_count() or 1
    return max(1, slots // int(spark.conf.get("spark.task.cpus", "1") or 1))
