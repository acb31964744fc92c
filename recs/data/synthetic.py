"""Generated event logs with planted structure, for the demo, the tests and runs at scale.

What is planted, so that a model can be seen to find it:

- **clusters**: items fall into clusters, their first category; a user prefers one to three of
  them and stays in one for a session of a few events.
- **popularity**: within a cluster the items' popularity is Zipf's (exponent 1), and users' activity
  is skewed in the same way.
- **rules**: an item is often followed, in the user's next event, by the next item of its cluster.
- **repeats**: users come back to earlier items.
- **dislikes**: most fall on items outside of the user's clusters.
- **features**: an item's text is made of its cluster's words; age and gender pull half of the users
  to one of their clusters.

Every value is a pure function of ``(seed, user, event index)`` by counter-based hashing, so a log
is the same for any number of partitions, and nothing is collected or kept per user: the same job
makes a hundred thousand events or a billion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.storage import filesystem, join

if TYPE_CHECKING:
    import pyarrow as pa

#: Events that each user has at the least.
MIN_USER_EVENTS = 5

#: Kinds of bad rows that :func:`write` strews among the events.
BAD_KINDS = (
    "empty_user",
    "empty_item",
    "unparsable_time",
    "future_time",
    "ancient_time",
    "unknown_type",
    "nan_weight",
    "infinite_weight",
    "negative_weight",
    "duplicate",
    "missing_column",
    "extra_column",
)

_EVENT_FIELDS = ("user", "item", "timestamp", "event_type", "weight")
_USER_FIELDS = ("user", "age", "gender", "country")

_SKEW = 100.0  # the most active users have about 20 times the mean number of events
_SESSION = 4  # events in a row from one cluster; even, so that a rule's two events share one
_DAY = 86_400  # seconds
_FILE_ROWS = 1_000_000  # rows of a users or items file
_CLUSTER_WORDS = 12
_COMMON_WORDS = 40
_SYLLABLES = ("ba", "do", "fe", "gi", "ka", "lo", "mu", "ne", "pi", "ra", "so", "tu", "va", "zo")
_COUNTRIES = ("us", "us", "us", "us", "gb", "gb", "de", "de", "fr", "in", "br", "jp")


@dataclass(frozen=True)
class SyntheticConfig:
    """Size and structure of a generated log.

    Parameters
    ----------
    num_events
        Events of ordinary users, exactly; at least ``MIN_USER_EVENTS`` for each.
    num_users, num_items, num_clusters
        Counts; items are dealt evenly to clusters.
    num_days, first_day
        Time span of the log; days are UTC.
    follow_share
        Share of the odd events of a user that follow their predecessor by the rule.
    repeat_share
        Share of the odd events that repeat an earlier item of the user.
    stray_share
        Share of the remaining events that fall on any cluster, mostly as views and dislikes.
    heavy_user_events
        Events of one further user, a bot with id :attr:`heavy_user`; 0 for none.
    seed
        Another seed gives another log.

    Raises
    ------
    ValueError
        If a count or a share is out of range.
    """

    num_events: int = 150_000
    num_users: int = 3_000
    num_items: int = 1_000
    num_clusters: int = 20
    num_days: int = 30
    first_day: date = date(2025, 1, 1)
    follow_share: float = 0.5
    repeat_share: float = 0.1
    stray_share: float = 0.1
    heavy_user_events: int = 0
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("num_users", "num_items", "num_clusters", "num_days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        least = MIN_USER_EVENTS * self.num_users
        if self.num_events < least:
            raise ValueError(
                f"num_events is {self.num_events}; {self.num_users} users need at least {least}"
            )
        if self.num_clusters > self.num_items:
            raise ValueError(
                f"num_clusters is {self.num_clusters}; at most num_items, {self.num_items}, can be"
            )
        if self.heavy_user_events < 0:
            raise ValueError(f"heavy_user_events is {self.heavy_user_events}; 0 is for none")
        for name in ("follow_share", "repeat_share", "stray_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.follow_share + self.repeat_share > 1:
            raise ValueError("follow_share + repeat_share exceed 1; lower one of them")

    @property
    def heavy_user(self) -> str:
        """Id of the bot that ``heavy_user_events`` asks for."""
        return f"u{self.num_users}"


@dataclass(frozen=True)
class SyntheticLog:
    """A generated log, as lazy DataFrames.

    Attributes
    ----------
    config
        What it was made from.
    events
        user string, item string, timestamp string (ISO 8601, UTC), event_type string
        ('view'|'like'|'purchase'|'dislike'), weight double (pieces bought, else 1), day date,
        position bigint (place among the user's events, which are in time order).
    items
        item string, title string, category array<string> (the cluster first), text string, price
        double.
    users
        user string, age int, gender string ('f'|'m'), country string.
    rules
        item string, next_item string: the planted truth, an item and what follows it.
    """

    config: SyntheticConfig
    events: DataFrame
    items: DataFrame
    users: DataFrame
    rules: DataFrame


def generate(
    spark: SparkSession, config: SyntheticConfig, *, num_partitions: int | None = None
) -> SyntheticLog:
    """Return the log that ``config`` describes; nothing runs until its DataFrames are used.

    Parameters
    ----------
    spark
        Session to work in.
    config
        Size and structure.
    num_partitions
        Tasks that make the events; by default one a core. The log does not depend on it.
    """
    draw = _Draws(config.seed)
    num_users = config.num_users + (config.heavy_user_events > 0)
    users = _users(spark.range(0, num_users, 1, num_partitions).toDF("number"), draw)
    items = spark.range(0, config.num_items, 1, num_partitions).toDF("number")
    return SyntheticLog(
        config=config,
        events=_events(users, config, draw),
        items=_items(items, config, draw),
        users=users.select(*_USER_FIELDS),
        rules=_rules(items, config),
    )


def write(log: SyntheticLog, folder: str, *, bad_share: float = 0.0) -> dict[str, int]:
    """Write a log as the raw files of a lake, with bad rows among the events.

    ``events/day=YYYY-MM-DD/events.csv`` (with a header; in order of time, user and position),
    ``items/items-00000.jsonl`` and ``users/users-00000.csv`` (with a header), the latter two a file
    a million rows. Names and bytes depend on the log and ``bad_share`` only, so that writing again
    changes nothing for a reader that remembers which files it has read.

    A bad row stands in the line after the event that it was made from, which itself is always
    written: an ingest that drops every bad row, duplicates too, is left with ``log.events``.

    Parameters
    ----------
    log
        What to write.
    folder
        Local path or URI; files of the same name are replaced.
    bad_share
        Bad rows for each event, in [0, 1]; they are of all :data:`BAD_KINDS` alike.

    Returns
    -------
    dict[str, int]
        Lines of events, items and users, headers aside.

    Raises
    ------
    ValueError
        If ``bad_share`` is out of range.
    """
    if not 0 <= bad_share <= 1:
        raise ValueError(f"bad_share is {bad_share}; it must lie in [0, 1]")
    draw = _Draws(log.config.seed)
    event_lines = F.array_compact(F.array(_line(*_EVENT_FIELDS), _bad_line(draw, bad_share)))
    events = log.events.select(
        F.format_string("day=%s/events.csv", F.col("day").cast("string")).alias("file"),
        F.struct("timestamp", "user", "position").alias("order"),
        F.posexplode(event_lines).alias("copy", "line"),
    )
    items = log.items.select(
        _numbered_file("item", "items-%05d.jsonl"),
        F.struct(_number("item")).alias("order"),
        F.lit(0).alias("copy"),
        F.to_json(F.struct("item", "title", "category", "text", "price")).alias("line"),
    )
    users = log.users.select(
        _numbered_file("user", "users-%05d.csv"),
        F.struct(_number("user")).alias("order"),
        F.lit(0).alias("copy"),
        _line(*_USER_FIELDS).alias("line"),
    )
    return {
        "events": _write_lines(events, join(folder, "events"), header=",".join(_EVENT_FIELDS)),
        "items": _write_lines(items, join(folder, "items")),
        "users": _write_lines(users, join(folder, "users"), header=",".join(_USER_FIELDS)),
    }


@dataclass(frozen=True)
class _Draws:
    """Random numbers by hashing: the same (seed, purpose, keys) always give the same number."""

    seed: int

    def below(self, bound: int | Column, purpose: str, *keys: Column | str) -> Column:
        """A whole number in [0, bound), as bigint."""
        return F.pmod(self._bits(purpose, *keys), F.lit(bound).cast("bigint"))

    def uniform(self, purpose: str, *keys: Column | str) -> Column:
        """A double in [0, 1)."""
        return F.shiftrightunsigned(self._bits(purpose, *keys), 11) * F.lit(2.0**-53)

    def one_of(self, values: tuple[str, ...], purpose: str, *keys: Column | str) -> Column:
        """One of the given strings."""
        return F.element_at(
            F.array(*map(F.lit, values)), (self.below(len(values), purpose, *keys) + 1).cast("int")
        )

    def _bits(self, purpose: str, *keys: Column | str) -> Column:
        return F.xxhash64(F.lit(self.seed).cast("bigint"), F.lit(purpose), *keys)


def _users(numbers: DataFrame, draw: _Draws) -> DataFrame:
    return numbers.select(
        "number",
        _name("u", F.col("number")).alias("user"),
        (16 + draw.below(60, "age", "number")).cast("int").alias("age"),
        draw.one_of(("f", "m"), "gender", "number").alias("gender"),
        draw.one_of(_COUNTRIES, "country", "number").alias("country"),
    )


def _events(users: DataFrame, config: SyntheticConfig, draw: _Draws) -> DataFrame:
    u, k, source = F.col("number"), F.col("position"), F.col("source")
    count, clusters = F.col("count"), config.num_clusters
    size = _cluster_size(F.col("cluster"), config)

    people = users.select(
        u,
        "user",
        _num_user_events(u, config).alias("count"),
        _preferences(config, draw).alias("preferences"),
        *_active_time(u, config, draw),
    )
    # An odd event follows or repeats an even one, and even ones are drawn afresh: so each event's
    # source is known without looking at any other row.
    choice = draw.uniform("choice", u, k)
    is_odd = k % 2 == 1
    follows = is_odd & (choice < config.follow_share)
    repeats = is_odd & ~follows & (choice < config.follow_share + config.repeat_share)
    earlier_even = 2 * draw.below(F.shiftright(k + 1, 1), "repeated", u, k)
    preference = draw.below(F.size("preferences"), "session", u, F.floor(source / _SESSION))
    zipf = F.floor(F.exp(draw.uniform("place", u, source) * F.log(size + 1.0))) - 1
    time = draw.uniform("time", u, k) * 0.9 + k
    events = (
        people.withColumn("position", F.explode(F.sequence(F.lit(0).cast("bigint"), count - 1)))
        .withColumn("follows", follows)
        .withColumn("source", F.when(follows, k - 1).when(repeats, earlier_even).otherwise(k))
        .withColumn("strays", draw.uniform("stray", u, source) < config.stray_share)
        .withColumn(
            "cluster",
            F.when(F.col("strays"), draw.below(clusters, "stray cluster", u, source)).otherwise(
                F.element_at("preferences", (preference + 1).cast("int"))
            ),
        )
        .withColumn("place", F.least(zipf, size - 1) + F.col("follows").cast("bigint"))
        .withColumn("event_type", _event_type(F.col("strays"), draw.uniform("type", u, k)))
        .withColumn("second", F.floor(F.col("start") + F.col("span") * time / count))
    )
    return events.select(
        "user",
        _item_name(F.pmod("place", size) * clusters + F.col("cluster"), config).alias("item"),
        _iso_time(F.col("second"), config).alias("timestamp"),
        "event_type",
        F.when(F.col("event_type") == "purchase", 1.0 + draw.below(3, "pieces", u, k))
        .otherwise(1.0)
        .alias("weight"),
        _day(F.col("second"), config).alias("day"),
        "position",
    )


def _num_user_events(number: Column, config: SyntheticConfig) -> Column:
    """Events of a user: the minimum, and a part of the rest that falls with the user's rank.

    The parts are differences of a cumulative share, log(1 + s·x) / log(1 + s), rounded down: thus
    they add up to ``num_events`` exactly, and a user's part needs no other user's.
    """
    rest = config.num_events - MIN_USER_EVENTS * config.num_users

    def cumulative(rank: Column) -> Column:
        share = F.log1p(rank * (_SKEW / config.num_users)) / F.log1p(F.lit(_SKEW))
        return F.round(share * rest).cast("bigint")

    rank = _shuffled(number, config.num_users)
    ordinary = MIN_USER_EVENTS + cumulative(rank + 1) - cumulative(rank)
    heavy = F.lit(config.heavy_user_events).cast("bigint")
    return F.when(number == config.num_users, heavy).otherwise(ordinary)


def _preferences(config: SyntheticConfig, draw: _Draws) -> Column:
    """One to three clusters of a user, as array<bigint>; age and gender give half of the firsts."""
    clusters, u = config.num_clusters, "number"
    of_group = draw.below(clusters, "taste of group", F.floor(F.col("age") / 10), "gender")
    own = [draw.below(clusters, f"taste {i}", u) for i in range(3)]
    first = F.when(draw.uniform("is of group", u) < 0.5, of_group).otherwise(own[0])
    number = 1 + draw.below(3, "number of tastes", u)
    return F.slice(F.array(first, own[1], own[2]), F.lit(1), number.cast("int"))


def _active_time(number: Column, config: SyntheticConfig, draw: _Draws) -> tuple[Column, Column]:
    """First second of a user and seconds up to the last: users join over the first 60% of days."""
    total = float(config.num_days * _DAY)
    start = F.pow(draw.uniform("joins", number), 2) * (0.6 * total)
    span = (total - start) * (0.4 + 0.6 * draw.uniform("stays", number))
    return start.alias("start"), span.alias("span")


def _event_type(strays: Column, chance: Column) -> Column:
    astray = F.when(chance < 0.5, "dislike").otherwise("view")
    at_home = (
        F.when(chance < 0.02, "dislike")
        .when(chance < 0.10, "purchase")
        .when(chance < 0.30, "like")
        .otherwise("view")
    )
    return F.when(strays, astray).otherwise(at_home)


def _items(numbers: DataFrame, config: SyntheticConfig, draw: _Draws) -> DataFrame:
    number, clusters = F.col("number"), config.num_clusters
    cluster = number % clusters

    def word(j: Column) -> Column:
        """Two words of three are the cluster's own, the others are anybody's."""
        own = draw.below(_CLUSTER_WORDS, "own word", number, j) + cluster * _CLUSTER_WORDS
        common = draw.below(_COMMON_WORDS, "common word", number, j) + clusters * _CLUSTER_WORDS
        return _word(F.when(draw.uniform("word", number, j) < 2 / 3, own).otherwise(common), draw)

    def words(first: int, last: int) -> Column:
        return F.concat_ws(" ", F.transform(F.sequence(F.lit(first), F.lit(last)), word))

    cents = F.floor(F.exp(draw.uniform("price", number) * 4.0) * 200)
    return numbers.select(
        _item_name(number, config).alias("item"),
        F.initcap(words(0, 2)).alias("title"),
        F.array(
            F.format_string("genre-%d", cluster),
            draw.one_of(("classic", "new", "kids", "live"), "shelf", number),
        ).alias("category"),
        words(3, 14).alias("text"),
        (cents / 100.0).alias("price"),
    )


def _rules(numbers: DataFrame, config: SyntheticConfig) -> DataFrame:
    number, clusters = F.col("number"), config.num_clusters
    cluster, place = number % clusters, F.floor(number / clusters)
    after = F.pmod(place + 1, _cluster_size(cluster, config)) * clusters + cluster
    return numbers.select(
        _item_name(number, config).alias("item"), _item_name(after, config).alias("next_item")
    )


def _cluster_size(cluster: Column, config: SyntheticConfig) -> Column:
    """Items of a cluster: item number n is the (n div clusters)th of cluster n mod clusters."""
    return F.floor((config.num_items - 1 - cluster) / config.num_clusters) + 1


def _word(number: Column, draw: _Draws) -> Column:
    parts = [draw.one_of(_SYLLABLES, f"syllable {i}", number) for i in range(3)]
    return F.concat(*parts)


def _shuffled(number: Column, count: int) -> Column:
    """A permutation of 0 … count − 1, so that ids tell nothing about popularity or activity."""
    multiplier = 2_654_435_761 % count or 1  # a prime (Knuth's), so it shares no factor with count
    return F.pmod(number * F.lit(multiplier).cast("bigint") + count // 3, F.lit(count))


def _item_name(number: Column, config: SyntheticConfig) -> Column:
    return _name("i", _shuffled(number, config.num_items))


def _name(prefix: str, number: Column) -> Column:
    return F.concat(F.lit(prefix), number.cast("bigint").cast("string"))


def _number(name: str) -> Column:
    return F.substring(name, 2, 19).cast("bigint").alias("number")


def _numbered_file(name: str, pattern: str) -> Column:
    return F.format_string(pattern, F.floor(_number(name) / _FILE_ROWS)).alias("file")


def _day(second: Column, config: SyntheticConfig) -> Column:
    return F.date_add(F.lit(config.first_day), F.floor(second / _DAY).cast("int"))


def _iso_time(second: Column, config: SyntheticConfig) -> Column:
    """ISO 8601 in UTC, by arithmetic: Spark's own formatting follows the session's time zone."""
    of_day = second % _DAY
    return F.format_string(
        "%sT%02d:%02d:%02dZ",
        _day(second, config).cast("string"),
        F.floor(of_day / 3600),
        F.floor(of_day / 60) % 60,
        of_day % 60,
    )


def _line(*fields: str | Column) -> Column:
    """A CSV line; no value of a log needs quoting."""
    return F.concat_ws(",", *(F.col(f).cast("string") if isinstance(f, str) else f for f in fields))


def _bad_line(draw: _Draws, share: float) -> Column:
    """A spoiled copy of an event's line, or null for most events."""

    def spoiled(**changes: str) -> Column:
        return _line(*(F.lit(changes[f]) if f in changes else f for f in _EVENT_FIELDS))

    lines = {
        "empty_user": spoiled(user=""),
        "empty_item": spoiled(item=""),
        "unparsable_time": spoiled(timestamp="yesterday"),
        "future_time": spoiled(timestamp="2099-01-01T00:00:00Z"),
        "ancient_time": spoiled(timestamp="1970-01-01T00:00:00Z"),
        "unknown_type": spoiled(event_type="teleport"),
        "nan_weight": spoiled(weight="NaN"),
        "infinite_weight": spoiled(weight="Infinity"),
        "negative_weight": spoiled(weight="-1.0"),
        "duplicate": _line(*_EVENT_FIELDS),
        "missing_column": _line("user", "item"),
        "extra_column": _line(*_EVENT_FIELDS, F.lit("surplus")),
    }
    keys = "user", "position"
    kind = draw.below(len(BAD_KINDS), "bad kind", *keys)
    line = F.element_at(F.array(*(lines[k] for k in BAD_KINDS)), (kind + 1).cast("int"))
    return F.when(draw.uniform("bad", *keys) < share, line)


def _write_lines(lines: DataFrame, folder: str, *, header: str | None = None) -> int:
    """Write lines to the files that they name, in order, one task a file; return how many.

    Parameters
    ----------
    lines
        file string (relative to ``folder``), order struct, copy int, line string.
    folder
        Local path or URI.
    header
        First line of every file.
    """
    top = "" if header is None else header + "\n"

    def write_files(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        import pyarrow as pa

        rows = (
            row
            for batch in batches
            for row in zip(batch["file"].to_pylist(), batch["line"].to_pylist(), strict=True)
        )
        for file, group in groupby(rows, key=itemgetter(0)):
            fs, path = filesystem(join(folder, file))
            count = 0
            with fs.open(path, "wb") as out:
                out.write(top.encode())
                for _, line in group:
                    out.write(f"{line}\n".encode())
                    count += 1
            yield pa.RecordBatch.from_pydict({"lines": [count]})

    ordered = lines.repartition("file").sortWithinPartitions("file", "order", "copy")
    counts = ordered.select("file", "line").mapInArrow(write_files, "lines bigint")
    (total,) = counts.agg(F.sum("lines")).collect()[0]
    return int(total)
