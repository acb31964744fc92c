"""How a host's memory is shared out: arithmetic only."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pytest
from pyspark.sql import SparkSession

from recs.slim import budget, solver
from recs.slim.budget import BudgetError, plan, workers_a_host

MB = 2**20


def counts(num_items: int, most: int) -> np.ndarray:
    return (most / np.arange(1, num_items + 1)).astype(np.int64) + 1


@pytest.mark.parametrize("num_items", [1_000, 10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("binary", [False, True])
def test_all_parts_together_fit(num_items: int, workers: int, binary: bool) -> None:
    users = 2 * num_items
    given = 2048 * MB
    found = plan(counts(num_items, users), users, binary, budget=given, workers=workers)
    pairs = workers * solver.SCRATCH_A_PAIR * found.max_working_set**2
    parts = found.matrix_bytes + found.table_bytes + found.scratch_bytes + pairs
    assert parts <= given
    assert found.table_bytes == found.head**2 * (2 if binary and users < 2**16 - 1 else 4)
    assert found.max_working_set >= solver.WORKING_SET


def test_a_larger_budget_makes_a_larger_table_until_all_is_in_it() -> None:
    many = np.full(20_000, 100)
    heads = [
        plan(many, 1000, True, budget=n * MB, workers=2).head for n in (64, 128, 256, 512, 2048)
    ]
    assert heads == sorted(heads) and heads[0] < heads[1] < heads[2] and heads[-1] == 20_000


def test_items_with_few_users_are_left_to_the_tail() -> None:
    found = plan(counts(100_000, 100_000), 100_000, True, budget=16_384 * MB, workers=1)
    assert found.head == (counts(100_000, 100_000) >= budget.LEAST_HEAD_USERS).sum()


def test_what_does_not_fit_is_told_with_the_mend() -> None:
    with pytest.raises(
        BudgetError, match=r"take \d+ MiB a host.*memory_budget_mb is 1: raise it, or"
    ):
        plan(np.full(1000, 1000), 1000, True, budget=MB, workers=2)


@pytest.mark.parametrize("workers", [1, 4])
def test_what_just_fits_has_its_whole_first_working_set(workers: int) -> None:
    many = np.full(5_000, 100)

    def fits(budget: int) -> bool:
        try:
            return plan(many, 1000, True, budget=budget, workers=workers).max_working_set > 0
        except BudgetError:
            return False

    least = bisect_left(range(64 * MB), True, key=fits)
    for extra in (0, 1_000, 30_000, 100_000, MB):
        found = plan(many, 1000, True, budget=least + extra, workers=workers)
        assert found.max_working_set >= solver.WORKING_SET
    assert not fits(least - 1) and found.head > 0


def test_workers_of_a_host(spark: SparkSession) -> None:
    assert workers_a_host(spark) == 2
