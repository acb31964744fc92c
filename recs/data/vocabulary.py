"""String ids ↔ dense integers: they grow with new ids and never renumber."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

_BUCKETS = 4096
_MAX_ID = 2**31 - 1


class VocabularyFull(ValueError):
    """More ids than a 32-bit integer numbers."""


def new_ids(found: DataFrame, known: DataFrame | None, *, key: str, number: str) -> DataFrame:
    """Number the ids that are not known yet, on from the known ones.

    The order is (hash bucket, hash, id): numbers are dense, the same for any partitioning, and say
    nothing of when an id appeared. No task sorts all ids: each bucket is sorted by itself, and only
    the buckets' sizes (4,096 rows) are summed up in one place.

    Parameters
    ----------
    found
        Column ``key`` (string), with repeats.
    known
        Columns ``key`` and ``number`` so far.
    key, number
        Names of the id and of its number.

    Returns
    -------
    DataFrame
        ``key``, ``number`` (int) of the new ids.

    Raises
    ------
    VocabularyFull
        If the numbers would not fit an int.
    """
    ids = found.select(key).where(F.col(key).isNotNull()).distinct()
    start = 0
    if known is not None:
        ids = ids.join(known.select(key), key, "left_anti")
        highest = known.agg(F.max(number)).collect()[0][0]
        start = 0 if highest is None else highest + 1
    hashed = ids.withColumn("_hash", F.xxhash64(key))
    hashed = hashed.withColumn("_bucket", F.pmod("_hash", F.lit(_BUCKETS)))
    sizes = hashed.groupBy("_bucket").agg(F.count("*").alias("_size"))
    before = Window.orderBy("_bucket").rowsBetween(Window.unboundedPreceding, -1)
    offsets = sizes.select(
        "_bucket", F.coalesce(F.sum("_size").over(before), F.lit(0)).alias("_offset"), "_size"
    )
    total = sizes.agg(F.sum("_size")).collect()[0][0] or 0
    if start + total > _MAX_ID:
        raise VocabularyFull(
            f"{start + total:,} values of {key!r} do not fit 32-bit numbers: "
            "leave out rare ones before ingest"
        )
    order = Window.partitionBy("_bucket").orderBy("_hash", key)
    place = F.row_number().over(order) - 1 + F.col("_offset") + F.lit(start)
    numbered = hashed.join(F.broadcast(offsets), "_bucket")
    return numbered.select(key, place.cast("int").alias(number))
