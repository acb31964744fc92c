"""All metrics for 138,000 users × 100 recommendations, in a running Spark session.

``python benchmarks/evaluation.py [users=138000] [master=local[2]] [keep=true]``

Made before the clock starts, and written to Parquet: lists of 100 of 26,744 items (the size of
MovieLens 20M) by a skewed popularity, one held-out target a user with ranks under two models, and
categories. Clocked: accuracy metrics at 10, 50 and 100 and of whole lists with bootstrap intervals,
by slice, the differences between the models, and coverage, novelty, diversity, popularity bias and
Gini of the lists, to the collected tables. Compiled code is warm: a run on a hundredth of the users
goes first.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from common import arguments, report
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.evaluation.lists import ItemCategories, evaluate_lists, write_categories
from recs.evaluation.ranks import sum_ranks
from recs.ranking.catalogue import ItemCatalogue, write_catalogue
from recs.session import get_session

NUM_ITEMS = 26_744
LENGTH = 100
TARGETS = 1  # leave-one-out
#: Of the bootstrap; what a pipeline's configuration has by default.
REPLICATES = 200
KS = (10, 50, 100)


def uniform(*keys: Column) -> Column:
    """Return a column of uniform numbers in [0, 1) that depends on ``keys`` alone."""
    return F.pmod(F.xxhash64(*keys), F.lit(1 << 40)) / F.lit(float(1 << 40))


def make_lists(spark: SparkSession, num_users: int, path: str) -> DataFrame:
    """Write lists without repeats within a user: steps through the items from a skewed start."""
    rows = spark.range(num_users * LENGTH, numPartitions=8)
    user = (F.col("id") / LENGTH).cast("int")
    rank = (F.col("id") % LENGTH + 1).cast("int")
    start = uniform(user) ** 3 * NUM_ITEMS
    step = 1 + F.pmod(user, F.lit(37))
    item = F.pmod(start.cast("int") + rank * step, F.lit(NUM_ITEMS)).cast("int")
    lists = rows.select(
        F.lit("slim").alias("model"),
        user.alias("user_id"),
        rank.alias("rank"),
        item.alias("item_id"),
    )
    lists.write.mode("overwrite").parquet(path)
    return spark.read.parquet(path)


def make_ranks(spark: SparkSession, num_users: int, path: str) -> DataFrame:
    """Write ranks of each user's targets under two models, one better than the other."""
    rows = spark.range(num_users * TARGETS, numPartitions=8)
    user = (F.col("id") / TARGETS).cast("int")
    place = F.lit(NUM_ITEMS) * uniform(F.col("id")) ** 6

    def of_model(name: str, factor: int) -> DataFrame:
        return rows.select(
            F.lit(name).alias("model"),
            F.lit("full").alias("protocol"),
            F.lit("test").alias("split"),
            user.alias("user_id"),
            F.col("id").cast("int").alias("item_id"),
            (1 + F.least(factor * place, F.lit(NUM_ITEMS - 1))).cast("bigint").alias("rank"),
            (10 * uniform(F.col("id"), F.lit(1))).cast("bigint").alias("ties"),
            F.lit(NUM_ITEMS).cast("bigint").alias("candidates"),
            (200 * uniform(user, F.lit(2)) ** 2).cast("int").alias("history_length"),
            (uniform(F.col("id"), F.lit(3)) < 0.8).alias("head"),
        )

    of_model("slim", 1).union(of_model("popularity", 2)).write.mode("overwrite").parquet(path)
    return spark.read.parquet(path)


def make_items(spark: SparkSession, folder: str) -> tuple[ItemCatalogue, ItemCategories]:
    """Write the catalogue and two of 20 categories an item."""
    items = spark.range(NUM_ITEMS).select(
        F.col("id").cast("int").alias("item_id"),
        (20_000_000 / (F.col("id") + 10)).cast("bigint").alias("train_events"),
        F.lit(True).alias("recommendable"),
    )
    pairs = items.select(
        "item_id",
        F.explode(
            F.array(*(F.pmod(F.xxhash64("item_id", F.lit(n)), F.lit(20)) for n in range(2)))
        ).alias("category"),
    )
    return (
        write_catalogue(items, folder, NUM_ITEMS),
        write_categories(
            pairs.withColumn("category", F.col("category").cast("string")), folder, NUM_ITEMS
        ),
    )


def main() -> None:
    """Make the input, run once on a little, then time the whole."""
    given = arguments("users", "master")
    num_users = int(given.get("users", 138_000))
    spark = get_session("benchmark-evaluation", master=given.get("master", "local[2]"))
    with tempfile.TemporaryDirectory() as folder:
        lists = make_lists(spark, num_users, str(Path(folder) / "lists"))
        ranks = make_ranks(spark, num_users, str(Path(folder) / "ranks"))
        catalogue, categories = make_items(spark, folder)

        def evaluate(lists: DataFrame, ranks: DataFrame) -> tuple[int, float, float]:
            started = time.perf_counter()
            totals = sum_ranks(ranks, KS, replicates=REPLICATES)
            rows = totals.metrics(spark).collect()
            rows += totals.differences(spark, "popularity").collect()
            middle = time.perf_counter()
            rows += evaluate_lists(
                lists, catalogue, categories, KS, replicates=REPLICATES
            ).collect()
            return len(rows), middle - started, time.perf_counter() - middle

        few = F.col("user_id") < num_users // 100
        evaluate(lists.where(few), ranks.where(few))
        count, of_ranks, of_lists = evaluate(lists, ranks)
    figures = {
        "seconds": round(of_ranks + of_lists, 2),
        "seconds_ranks": round(of_ranks, 2),
        "seconds_lists": round(of_lists, 2),
        "users": num_users,
        "recommendations": num_users * LENGTH,
        "ranks": 2 * num_users * TARGETS,
        "metrics": count,
        "replicates": REPLICATES,
    }
    spark.stop()
    report("evaluation", figures, {}, given)


if __name__ == "__main__":
    main()
