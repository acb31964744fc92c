"""The demo: generated events with planted structure, and what a person looks at in the end."""

from __future__ import annotations

from collections.abc import Iterator

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from pipelines.generate import Settings, generate_log, is_whole
from recs import readers
from recs.config import Config
from recs.lake import Lake

_SHOWN = 5


def make_input(folder: str, verbose: bool = False) -> None:
    """Write the demo's raw files under ``folder``, unless they are there."""
    if not is_whole(folder):
        generate_log(Settings(data=folder), verbose=verbose)


def one_user(lake: Lake, config: Config) -> Iterator[str]:
    """Tell of a user, in titles: the newest events, and each model's list with its reasons.

    It is the first user to whom every model has something to say of its own.
    """
    titles = _titles(lake)
    lists = readers.read(lake, "recommendations").where(~F.col("fallback"))
    served = lists.where("rank = 1").groupBy("user_id", "user").agg(F.count("*").alias("models"))
    chosen = served.where(F.col("models") == len(config.models)).orderBy("user_id").first()
    if chosen is None:
        return
    yield f"\nThe last events of {chosen['user']}, the newest first:"
    for row in _history(lake, chosen["user_id"], titles):
        held_out = "" if row["split"] == "train" else f" (held out: {row['split']})"
        yield f"  {row['event_type']:<9} {row['title']}{held_out}"
    of_user = lists.where((F.col("user_id") == chosen["user_id"]) & (F.col("rank") <= _SHOWN))
    rows = of_user.join(titles, "item_id").orderBy("rank").collect()
    names = {row["item_id"]: row["title"] for row in _reasons(of_user, titles)}
    for model in config.models:
        yield f"What {model} recommends:"
        for row in (row for row in rows if row["model"] == model):
            why = [f"{names[r['item_id']]} {r['share']:.0%}" for r in row["why"] or []]
            yield f"  {row['rank']}. {row['title']}" + (f", for {', '.join(why)}" if why else "")


def _titles(lake: Lake) -> DataFrame:
    """Return item_id and title, which is the item's id where none is known."""
    known = readers.read(lake, "items").select("item", "title")
    numbered = readers.read(lake, "item_ids").join(known, "item", "left")
    return numbered.select("item_id", F.coalesce("title", "item").alias("title"))


def _history(lake: Lake, user_id: int, titles: DataFrame) -> list[Row]:
    events = readers.read(lake, "interactions").where(F.col("user_id") == user_id)
    newest = events.orderBy(F.desc("sequence")).limit(_SHOWN)
    return newest.join(titles, "item_id").orderBy(F.desc("sequence")).collect()


def _reasons(lists: DataFrame, titles: DataFrame) -> list[Row]:
    items = lists.select(F.explode("why.item_id").alias("item_id")).distinct()
    return items.join(titles, "item_id").collect()
