"""What is known of items and users, and candidate lists given with a data set."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recs.config import ItemSource, UserSource
from recs.data.files import SourceError, column_of
from recs.data.sources import BAD_ENCODING, LINE, MALFORMED, RAW, REASON, SOURCE

_MAP = "map<string,string>"


def item_columns(source: ItemSource) -> list[str]:
    """Return the columns of the data that an item source reads, each once."""
    names = [source.item, source.title, source.categories, source.text]
    wanted = [name for name in names if name] + source.category_flags + source.attributes
    return list(dict.fromkeys(wanted))


def user_columns(source: UserSource) -> list[str]:
    """Return the columns of the data that a user source reads, each once."""
    return list(dict.fromkeys([source.user, *source.attributes]))


def with_reason(rows: DataFrame, key: str, column: str) -> DataFrame:
    """Return rows whose id is missing with the reason ``null_item`` or ``null_user``.

    Parameters
    ----------
    rows
        Of :func:`recs.data.sources.read_rows`.
    key
        ``item`` or ``user``.
    column
        Column of the id.
    """
    missing = F.coalesce(F.trim(column_of(column)), F.lit("")) == ""
    return rows.withColumn(REASON, F.coalesce(REASON, F.when(missing, F.lit(f"null_{key}"))))


def items(rows: DataFrame, source: ItemSource) -> DataFrame:
    """Return rows of table ``items`` but ``run_id``: one an item; see :func:`_last`.

    Parameters
    ----------
    rows
        Of :func:`with_reason`.
    """
    if source.category_flags:
        flags = [F.when(F.trim(column_of(c)) == "1", F.lit(c)) for c in source.category_flags]
        categories = F.array_compact(F.array(*flags))
    elif source.categories:
        categories = _categories(column_of(source.categories), source.category_separator)
    else:
        categories = F.lit(None).cast("array<string>")
    values = {
        "title": _text(source.title),
        "categories": categories,
        "text": _text(source.text),
    }
    return _last(rows, "item", source.item, values, source.attributes)


def users(rows: DataFrame, source: UserSource) -> DataFrame:
    """Return rows of table ``users`` but ``run_id``: one a user; see :func:`_last`."""
    return _last(rows, "user", source.user, {}, source.attributes)


def _last(
    rows: DataFrame, key: str, column: str, values: dict[str, Column], attributes: list[str]
) -> DataFrame:
    """Return one row an id: of each column what was said last, in the order of files and lines.

    A null or empty value says nothing.
    """
    place = F.struct(SOURCE, LINE)
    said = {name: _text(name) for name in attributes}
    named = rows.where(F.col(REASON).isNull()).select(
        F.trim(column_of(column)).alias(key),
        place.alias("_place"),
        *[value.alias(name) for name, value in values.items()],
        *[value.alias(f"_attribute_{n}") for n, value in enumerate(said.values())],
    )

    def last(name: str) -> Column:
        return F.max_by(name, F.when(F.col(name).isNotNull(), F.col("_place")))

    found = named.groupBy(key).agg(
        F.count("*").alias("_rows"),
        *[last(name).alias(name) for name in values],
        *[last(f"_attribute_{n}").alias(f"_attribute_{n}") for n in range(len(attributes))],
    )
    pairs = [
        p for n, name in enumerate(attributes) for p in (F.lit(name), F.col(f"_attribute_{n}"))
    ]
    whole = F.map_filter(F.create_map(*pairs), lambda _, v: v.isNotNull()) if pairs else F.lit(None)
    return found.select(key, *values, whole.cast(_MAP).alias("attributes"))


def merged(old: DataFrame | None, new: DataFrame, key: str) -> DataFrame:
    """Return what was known and what is new: of each column, and attribute, the newest delivery."""
    if old is None:
        return new
    joined = old.select(*new.columns).alias("old").join(new.alias("new"), key, "full")

    def newest(name: str) -> Column:
        before, after = F.col(f"old.{name}"), F.col(f"new.{name}")
        if name != "attributes":
            return F.coalesce(after, before)
        both = F.map_zip_with(before, after, lambda _, old, new: F.coalesce(new, old))
        return F.coalesce(both, after, before)

    names = [name for name in new.columns if name != key]
    return joined.select(key, *[newest(name).alias(name) for name in names])


_PAIR = r"^\(([^,()]+),([^,()]+)\)\t"


def with_form(lines: DataFrame) -> DataFrame:
    """Return lines of candidate lists with the reason ``malformed`` where they have another form.

    A line is ``(user,item)``, then the candidates, tab separated: the form of the NCF paper's
    ``test.negative`` files.
    """
    malformed = F.when(~F.col("value").rlike(_PAIR), F.lit(MALFORMED))
    return lines.select(
        "value",
        F.col("value").alias(RAW),
        SOURCE,
        LINE,
        F.coalesce(REASON, malformed).alias(REASON),
    )


def candidate_lists(lines: DataFrame) -> DataFrame:
    """Return rows of table ``candidate_lists`` but ``run_id``, of :func:`with_form`'s lines."""
    listed = F.transform(
        F.slice(F.split("value", "\t"), 2, 1_000_000), lambda candidate: F.trim(candidate)
    )
    return lines.where(F.col(REASON).isNull()).select(
        F.trim(F.regexp_extract("value", _PAIR, 1)).alias("user"),
        F.trim(F.regexp_extract("value", _PAIR, 2)).alias("item"),
        F.filter(listed, lambda candidate: candidate != "").alias("candidates"),
    )


def require_some(judged: DataFrame, files: DataFrame, what: str) -> dict[str, int]:
    """Return the rows of each reason, where every file has a row that is good.

    Parameters
    ----------
    judged
        Rows with ``_source`` and ``_reason``.
    files
        ``source`` and ``path``.
    what
        What the rows are, for the message.

    Raises
    ------
    SourceError
        If all rows of a file were rejected.
    """
    counts = judged.groupBy(SOURCE, REASON).agg(F.count("*").alias("rows")).collect()
    good = {row[SOURCE] for row in counts if row[REASON] is None}
    rejected: dict[str, int] = {}
    for row in sorted(counts, key=lambda row: row["rows"], reverse=True):
        if row[REASON] is None:
            continue
        if row[SOURCE] not in good:
            path = files.where(F.col("source") == row[SOURCE]).collect()[0]["path"]
            hint = "say encoding: latin-1" if row[REASON] == BAD_ENCODING else "mend its columns"
            raise SourceError(
                f"{path} holds no {what}: all of its rows are rejected, most as {row[REASON]}; "
                f"{hint} in the config"
            )
        rejected[row[REASON]] = rejected.get(row[REASON], 0) + row["rows"]
    return rejected


def _text(name: str | None) -> Column:
    if not name:
        return F.lit(None).cast("string")
    text = column_of(name).cast("string")
    return F.when(F.trim(text) != "", text)


def _categories(text: Column, separator: str) -> Column:
    """Split ``a|b``; a JSON array of strings, and so a list of Parquet, is understood as well."""
    text = F.when(F.trim(text) != "", text)
    listed = F.from_json(text, "array<string>")
    split = F.split(text, "\\Q" + separator + "\\E")
    trimmed = F.transform(F.coalesce(listed, split), lambda part: F.trim(part))
    return F.filter(trimmed, lambda part: part != "")
