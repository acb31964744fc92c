"""What is known of items and users, and candidate lists given with a data set."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from recs.config import CandidateSource, ItemSource, UserSource
from recs.data.sources import LINE, MALFORMED, SOURCE, SourceError, column_of, open_batch, rows


def items(spark: SparkSession, source: ItemSource, path: str) -> DataFrame:
    """Return rows of table ``items`` but ``run_id``: one an item, its last in the source."""
    names = [source.item, source.title, source.categories, source.text]
    wanted = [name for name in names if name] + source.category_flags + source.attributes
    df = rows(open_batch(spark, source, path), source, list(dict.fromkeys(wanted)))
    if source.category_flags:
        flags = [F.when(F.trim(column_of(c)) == "1", F.lit(c)) for c in source.category_flags]
        categories = F.array_compact(F.array(*flags))
    elif source.categories:
        categories = _categories(column_of(source.categories), source.category_separator)
    else:
        categories = F.lit(None).cast("array<string>")
    return _last_of(df, source.item).select(
        F.trim(column_of(source.item)).alias("item"),
        _text(source.title).alias("title"),
        categories.alias("categories"),
        _text(source.text).alias("text"),
        _attributes(source.attributes).alias("attributes"),
    )


def users(spark: SparkSession, source: UserSource, path: str) -> DataFrame:
    """Return rows of table ``users`` but ``run_id``: one a user, its last in the source."""
    df = rows(open_batch(spark, source, path), source, [source.user, *source.attributes])
    return _last_of(df, source.user).select(
        F.trim(column_of(source.user)).alias("user"),
        _attributes(source.attributes).alias("attributes"),
    )


def candidate_lists(spark: SparkSession, source: CandidateSource, path: str) -> DataFrame:
    """Return rows of table ``candidate_lists`` but ``run_id``.

    A line is ``(user,item)``, then the candidates, tab separated: the form of the NCF paper's
    ``test.negative`` files.

    Raises
    ------
    SourceError
        At the first line that has another form.
    """
    lines = open_batch(spark, source, path).select("value", SOURCE).where(F.trim("value") != "")
    pair = r"^\(([^,()]+),([^,()]+)\)\t"
    bad = lines.where(~F.col("value").rlike(pair)).limit(1).collect()
    if bad:
        raise SourceError(
            f"{bad[0][SOURCE]}: a line is not '(user,item)<tab>candidate<tab>…': "
            f"{bad[0]['value'][:80]!r}"
        )
    return lines.select(
        F.trim(F.regexp_extract("value", pair, 1)).alias("user"),
        F.trim(F.regexp_extract("value", pair, 2)).alias("item"),
        F.slice(F.split(F.rtrim("value"), "\t"), 2, 1_000_000).alias("candidates"),
    )


def newest(old: DataFrame | None, new: DataFrame, key: str) -> DataFrame:
    """Return ``old`` with the rows of ``new`` in place of those with the same key."""
    if old is None:
        return new
    return old.select(*new.columns).join(new.select(key), key, "left_anti").unionByName(new)


def _last_of(df: DataFrame, key: str) -> DataFrame:
    """Keep the last row of each key; rows without a key or of the wrong form are no entity."""
    order = Window.partitionBy(F.trim(column_of(key))).orderBy(F.desc(SOURCE), F.desc(LINE))
    whole = df.where(~F.col(MALFORMED) & (F.trim(column_of(key)) != ""))
    return whole.withColumn("_n", F.row_number().over(order)).where("_n = 1")


def _text(name: str | None) -> Column:
    return column_of(name) if name else F.lit(None).cast("string")


def _categories(text: Column, separator: str) -> Column:
    """Split ``a|b``; a JSON array of strings is understood as well."""
    listed = F.from_json(text, "array<string>")
    split = F.split(text, "\\Q" + separator + "\\E")
    trimmed = F.transform(F.coalesce(listed, split), lambda part: F.trim(part))
    return F.filter(trimmed, lambda part: part != "")


def _attributes(names: list[str]) -> Column:
    if not names:
        return F.lit(None).cast("map<string,string>")
    return F.create_map(*[part for name in names for part in (F.lit(name), column_of(name))])
