"""Rows brought together by a key, and read as a stream of Arrow batches in bounded memory.

Rows that belong together (a user's, a row's of a matrix, a file's) meet in one partition, sorted by
one packed bigint, which Spark sorts by radix and spills. A task of ``DataFrame.mapInArrow`` then
reads them in order; a batch may end amid the rows of a user, and the next one goes on with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame


def packed(user: str | Column, place: str | Column) -> Column:
    """Return the bigint ``user << 32 | place`` of two columns of numbers from 0 to 2³¹ − 1."""
    from pyspark.sql import functions as F

    high, low = (F.col(part) if isinstance(part, str) else part for part in (user, place))
    return F.shiftleft(high.cast("bigint"), 32).bitwiseOR(low.cast("bigint"))


def by_user(rows: DataFrame) -> DataFrame:
    """Bring each user's rows together, in ascending order of their ``key`` of :func:`packed`."""
    from pyspark.sql import functions as F

    return rows.repartition(F.shiftright("key", 32)).sortWithinPartitions("key")


def run_starts(keys: np.ndarray) -> np.ndarray:
    """Return where each run of equal keys begins.

    >>> run_starts(np.array([4, 4, 7, 4])).tolist()
    [0, 2, 3]
    """
    changed = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=changed[1:])
    return np.flatnonzero(changed)


def last_user(keys: np.ndarray) -> int:
    """Return where the last user of ascending packed keys begins; their rows may not all be here.

    >>> last_user(np.array([1 << 32, 2 << 32, 2 << 32 | 5]))
    1
    """
    return int(np.searchsorted(keys, keys[-1] >> 32 << 32)) if len(keys) else 0


def whole_runs(batches: Iterable[pa.RecordBatch], column: str) -> Iterator[tuple[int, pa.Table]]:
    """Yield each value of an integer column, by which the rows come sorted, and all its rows."""
    import pyarrow as pa

    value, held = -1, list[pa.RecordBatch]()
    for batch in batches:
        values = batch.column(column).to_numpy()
        for start, stop in pairwise([*run_starts(values).tolist(), batch.num_rows]):
            if held and values[start] != value:
                yield value, pa.Table.from_batches(held)
                held = []
            value = int(values[start])
            held.append(batch.slice(start, stop - start))
    if held:
        yield value, pa.Table.from_batches(held)
