"""All rows of a user together in one row, with few rows shuffled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from recs.arrays.lists import read_column, to_arrow

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Group = tuple[str, ...]


def gather_users(
    frame: DataFrame, keys: Sequence[str], columns: Mapping[str, str]
) -> tuple[DataFrame, list[Group]]:
    """Gather the rows of each group and user.

    A table written user by user holds a user's rows in runs. A first pass makes each run one row,
    so that only these are shuffled; rows in any other order end the same, slower.

    Parameters
    ----------
    frame
        user_id, the string columns ``keys``, and ``columns``, which hold no nulls.
    keys
        Columns of few distinct values together, which make the groups.
    columns
        Name to type, numbers.

    Returns
    -------
    DataFrame
        group int, user_id int, and each of ``columns`` as an array, in no particular but the same
        order; the groups; number n is the n-th of the list.
    list
        The groups' values of ``keys``, sorted.
    """
    from pyspark.sql import functions as F

    groups = sorted(tuple(row) for row in frame.select(*keys).distinct().collect())
    code = F.lit(-1)
    for n, group in enumerate(groups):
        same = (F.col(key).eqNullSafe(value) for key, value in zip(keys, group, strict=True))
        code = F.when(reduce(and_, same), n).otherwise(code)
    arrays = ", ".join(f"{name} array<{kind}>" for name, kind in columns.items())

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            codes, users = read_column(batch, "group"), read_column(batch, "user_id")
            changed = (codes[1:] != codes[:-1]) | (users[1:] != users[:-1])
            starts = np.flatnonzero(np.concatenate([[batch.num_rows > 0], changed]))
            offsets = np.append(starts, batch.num_rows)
            lists = {name: to_arrow(offsets, batch.column(name)) for name in columns}
            yield pa.RecordBatch.from_pydict(
                {"group": codes[starts], "user_id": users[starts], **lists}
            )

    packed = frame.select(code.alias("group"), "user_id", *columns).mapInArrow(
        pack, f"group int, user_id int, {arrays}"
    )
    gathered = packed.groupBy("group", "user_id").agg(
        *(F.flatten(F.collect_list(name)).alias(name) for name in columns)
    )
    return gathered, groups
