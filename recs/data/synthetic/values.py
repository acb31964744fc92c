"""The planted values of a log as Spark expressions of (seed, user, event index)."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.data.synthetic.config import MIN_USER_EVENTS, SyntheticConfig

#: Names of the codes in column ``type``.
EVENT_TYPES = ("view", "like", "purchase", "dislike")

SECONDS_A_DAY = 86_400

_SKEW = 100.0  # the most active users have about 20 times the mean number of events
_SESSION = 4  # events in a row from one cluster; even, so that a rule's two events share one
_CHUNK = 10_000  # events of a user that are made from one row
_TASK_EVENTS = 500_000
_CLUSTER_WORDS = 12
_COMMON_WORDS = 40
_SYLLABLES = ("ba", "do", "fe", "gi", "ka", "lo", "mu", "ne", "pi", "ra", "so", "tu", "va", "zo")
_COUNTRIES = ("us", "us", "us", "us", "gb", "gb", "de", "de", "fr", "in", "br", "jp")


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
    coded
        The events as numbers, which travel faster: user, item (of the names 'u…' and 'i…') and
        position bigint, second bigint (since ``first_day``), type int (of ``EVENT_TYPES``),
        pieces int.
    """

    config: SyntheticConfig
    events: DataFrame
    items: DataFrame
    users: DataFrame
    rules: DataFrame
    coded: DataFrame


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
        Tasks that make the events; by default one for half a million. The log does not depend on
        it.
    """
    draws = Draws(config.seed)
    num_users = config.num_users + (config.heavy_user_events > 0)
    users = spark.range(0, num_users, 1, num_partitions).toDF("number")
    items = spark.range(0, config.num_items, 1, num_partitions).toDF("number")
    tasks = num_partitions or -(-config.total_events // _TASK_EVENTS)
    coded = _events(users, config, draws, tasks)
    return SyntheticLog(
        config=config,
        events=_named_events(coded, config),
        items=_items(items, config, draws),
        users=_with_traits(users, draws).select(
            _name("u", F.col("number")).alias("user"), "age", "gender", "country"
        ),
        rules=_rules(items, config),
        coded=coded,
    )


@dataclass(frozen=True)
class Draws:
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
        return element(values, self.below(len(values), purpose, *keys))

    def _bits(self, purpose: str, *keys: Column | str) -> Column:
        return F.xxhash64(F.lit(self.seed).cast("bigint"), F.lit(purpose), *keys)


def element(values: tuple[str, ...], index: Column) -> Column:
    """The string at an index, from 0."""
    return F.element_at(F.array(*map(F.lit, values)), (index + 1).cast("int"))


def _with_traits(numbers: DataFrame, draws: Draws) -> DataFrame:
    return numbers.withColumns(
        {
            "age": (16 + draws.below(60, "age", "number")).cast("int"),
            "gender": draws.one_of(("f", "m"), "gender", "number"),
            "country": draws.one_of(_COUNTRIES, "country", "number"),
        }
    )


def _events(users: DataFrame, config: SyntheticConfig, draws: Draws, tasks: int) -> DataFrame:
    u, k, source = F.col("number"), F.col("position"), F.col("source")
    count, clusters = F.col("count"), config.num_clusters
    size = _cluster_size(F.col("cluster"), config)

    # A user of millions of events is cut into chunks, and chunks are dealt to tasks: what a task
    # makes does not grow with the most active user.
    chunks = users.withColumn("count", _num_user_events(u, config)).withColumn(
        "first", F.explode(F.sequence(F.lit(0).cast("bigint"), count - 1, F.lit(_CHUNK)))
    )
    people = _with_traits(chunks.repartition(tasks, "number", "first"), draws).select(
        u,
        "count",
        "first",
        _preferences(config, draws).alias("preferences"),
        *_active_time(u, config, draws),
    )
    last = F.least(count, F.col("first") + _CHUNK) - 1
    # An odd event follows or repeats an even one, and even ones are drawn afresh: so each event's
    # source is known without looking at any other row.
    choice = draws.uniform("choice", u, k)
    is_odd = k % 2 == 1
    follows = is_odd & (choice < config.follow_share)
    repeats = is_odd & ~follows & (choice < config.follow_share + config.repeat_share)
    earlier_even = 2 * draws.below(F.shiftright(k + 1, 1), "repeated", u, k)
    preference = draws.below(F.size("preferences"), "session", u, F.floor(source / _SESSION))
    zipf = F.floor(F.exp(draws.uniform("place", u, source) * F.log(size + 1.0))) - 1
    time = draws.uniform("time", u, k) * 0.9 + k
    events = (
        people.withColumn("position", F.explode(F.sequence("first", last)))
        .withColumn("follows", follows)
        .withColumn("source", F.when(follows, k - 1).when(repeats, earlier_even).otherwise(k))
        .withColumn("strays", draws.uniform("stray", u, source) < config.stray_share)
        .withColumn(
            "cluster",
            F.when(F.col("strays"), draws.below(clusters, "stray cluster", u, source)).otherwise(
                F.element_at("preferences", (preference + 1).cast("int"))
            ),
        )
        .withColumn("place", F.least(zipf, size - 1) + F.col("follows").cast("bigint"))
        .withColumn("type", _event_type(F.col("strays"), draws.uniform("type", u, k)))
    )
    item = F.pmod("place", size) * clusters + F.col("cluster")
    is_purchase = F.col("type") == EVENT_TYPES.index("purchase")
    return events.select(
        u.alias("user"),
        _shuffled(item, config.num_items).alias("item"),
        "position",
        F.floor(F.col("start") + F.col("span") * time / count).alias("second"),
        "type",
        F.when(is_purchase, 1 + draws.below(3, "pieces", u, k))
        .otherwise(1)
        .cast("int")
        .alias("pieces"),
    )


def _named_events(coded: DataFrame, config: SyntheticConfig) -> DataFrame:
    return coded.select(
        _name("u", F.col("user")).alias("user"),
        _name("i", F.col("item")).alias("item"),
        _iso_time(F.col("second"), config).alias("timestamp"),
        element(EVENT_TYPES, F.col("type")).alias("event_type"),
        F.col("pieces").cast("double").alias("weight"),
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


def _preferences(config: SyntheticConfig, draws: Draws) -> Column:
    """One to three clusters of a user, as array<bigint>; age and gender give half of the firsts."""
    clusters, u = config.num_clusters, "number"
    of_group = draws.below(clusters, "taste of group", F.floor(F.col("age") / 10), "gender")
    own = [draws.below(clusters, f"taste {i}", u) for i in range(3)]
    first = F.when(draws.uniform("is of group", u) < 0.5, of_group).otherwise(own[0])
    number = 1 + draws.below(3, "number of tastes", u)
    return F.slice(F.array(first, own[1], own[2]), F.lit(1), number.cast("int"))


def _active_time(number: Column, config: SyntheticConfig, draws: Draws) -> tuple[Column, Column]:
    """First second of a user and seconds up to the last: users join over the first 60% of days."""
    total = float(config.num_days * SECONDS_A_DAY)
    start = F.pow(draws.uniform("joins", number), 2) * (0.6 * total)
    span = (total - start) * (0.4 + 0.6 * draws.uniform("stays", number))
    return start.alias("start"), span.alias("span")


def _event_type(strays: Column, chance: Column) -> Column:
    """Code of an event's type: mostly dislikes away from the user's clusters, few at home."""
    view, like, purchase, dislike = (F.lit(code) for code in range(len(EVENT_TYPES)))
    astray = F.when(chance < 0.5, dislike).otherwise(view)
    at_home = (
        F.when(chance < 0.02, dislike)
        .when(chance < 0.10, purchase)
        .when(chance < 0.30, like)
        .otherwise(view)
    )
    return F.when(strays, astray).otherwise(at_home)


def _items(numbers: DataFrame, config: SyntheticConfig, draws: Draws) -> DataFrame:
    number, clusters = F.col("number"), config.num_clusters
    cluster = number % clusters

    def word(j: Column) -> Column:
        """Two words of three are the cluster's own, the others are anybody's."""
        own = draws.below(_CLUSTER_WORDS, "own word", number, j) + cluster * _CLUSTER_WORDS
        common = draws.below(_COMMON_WORDS, "common word", number, j) + clusters * _CLUSTER_WORDS
        return _word(F.when(draws.uniform("word", number, j) < 2 / 3, own).otherwise(common), draws)

    def words(first: int, last: int) -> Column:
        return F.concat_ws(" ", F.transform(F.sequence(F.lit(first), F.lit(last)), word))

    cents = F.floor(F.exp(draws.uniform("price", number) * 4.0) * 200)
    return numbers.select(
        _item_name(number, config).alias("item"),
        F.initcap(words(0, 2)).alias("title"),
        F.array(
            F.format_string("genre-%d", cluster),
            draws.one_of(("classic", "new", "kids", "live"), "shelf", number),
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


def _word(number: Column, draws: Draws) -> Column:
    parts = [draws.one_of(_SYLLABLES, f"syllable {i}", number) for i in range(3)]
    return F.concat(*parts)


def _shuffled(number: Column, count: int) -> Column:
    """A permutation of 0 … count − 1, so that ids tell nothing about popularity or activity."""
    multiplier = 2_654_435_761 % count or 1  # a prime (Knuth's), so it shares no factor with count
    return F.pmod(number * F.lit(multiplier).cast("bigint") + count // 3, F.lit(count))


def _item_name(number: Column, config: SyntheticConfig) -> Column:
    return _name("i", _shuffled(number, config.num_items))


def _name(prefix: str, number: Column) -> Column:
    return F.concat(F.lit(prefix), number.cast("bigint").cast("string"))


def _day(second: Column, config: SyntheticConfig) -> Column:
    return F.date_add(F.lit(config.first_day), F.floor(second / SECONDS_A_DAY).cast("int"))


def _iso_time(second: Column, config: SyntheticConfig) -> Column:
    """ISO 8601 in UTC, by arithmetic: Spark's own formatting follows the session's time zone."""
    of_day = second % SECONDS_A_DAY

    def two_digits(number: Column) -> Column:
        return F.lpad(F.floor(number).cast("string"), 2, "0")

    return F.concat(
        _day(second, config).cast("string"),
        F.lit("T"),
        two_digits(of_day / 3600),
        F.lit(":"),
        two_digits(of_day / 60 % 60),
        F.lit(":"),
        two_digits(of_day % 60),
        F.lit("Z"),
    )
