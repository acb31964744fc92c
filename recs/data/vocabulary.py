"""String ids ↔ dense integers: they grow with new ids and never renumber."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from recs.errors import UserError

_BUCKETS = 256
_MAX_ID = 2**31 - 1


class VocabularyFull(UserError):
    """More ids than a 32-bit integer numbers."""


def new_ids(found: DataFrame, known: DataFrame | None, *, key: str, number: str) -> DataFrame:
    """Number the ids that are not known yet, on from the known ones.

    The order is (first day, hash, id), those without a day first: numbers are dense, the same for
    any partitioning and, where days are delivered in order, for days one by one and all at once. No
    task sorts all ids: each day's are sorted in 256 buckets of hashes, and only the buckets' sizes
    are summed up in one place, 256 rows a day.

    Parameters
    ----------
    found
        Column ``key`` (string), with repeats, and ``day`` (date), null where there is none.
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
    undated = F.lit("0001-01-01").cast("date")
    first = F.min(F.coalesce("day", undated)).alias("_day")
    ids = found.where(F.col(key).isNotNull()).groupBy(key).agg(first)
    start = 0
    if known is not None:
        ids = ids.join(known.select(key), key, "left_anti")
        highest = known.agg(F.max(number)).collect()[0][0]
        start = 0 if highest is None else highest + 1
    hashed = ids.withColumn("_hash", F.xxhash64(key))
    # Read three times, and found by an aggregation of all that is new: once is enough.
    hashed = hashed.withColumn("_bucket", F.pmod("_hash", F.lit(_BUCKETS))).localCheckpoint()
    sizes = hashed.groupBy("_day", "_bucket").agg(F.count("*").alias("_size"))
    before = Window.orderBy("_day", "_bucket").rowsBetween(Window.unboundedPreceding, -1)
    offset = F.coalesce(F.sum("_size").over(before), F.lit(0))
    offsets = sizes.select("_day", "_bucket", offset.alias("_offset"))
    total = sizes.agg(F.sum("_size")).collect()[0][0] or 0
    if start + total > _MAX_ID:
        raise VocabularyFull(
            f"{start + total:,} values of {key!r} do not fit 32-bit numbers: "
            "leave out rare ones before ingest"
        )
    order = Window.partitionBy("_day", "_bucket").orderBy("_hash", key)
    place = F.row_number().over(order) - 1 + F.col("_offset") + F.lit(start)
    numbered = hashed.join(F.broadcast(offsets), ["_day", "_bucket"])
    return numbered.select(key, place.cast("int").alias(number))
