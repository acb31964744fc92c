"""A tiny delivery on disk and the configuration that reads it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import yaml

from recs.config import Config, load_config

CONFIG = {
    "name": "tiny",
    "events": {
        "sources": [
            {
                "path": "events",
                "columns": {"user": "u", "item": "i", "timestamp": "t", "event_type": "e"},
            }
        ],
        "types": {"view": {}, "dislike": {"polarity": "negative"}},
    },
    "items": [
        {"path": path, "item": "item", "title": "title", "categories": "genres"}
        for path in ("left.csv", "right.csv")
    ],
    "slim": {"l1": 0.1, "l2": 0.1},
    "recommend": {"k": 5},
    "evaluate": {"ks": [1, 5], "bootstrap": 20, "protocols": ["full"]},
}


def deliver(folder: Path, day: int, users: range) -> None:
    """Write a day's events: users of even number go through items 0–9, the others through 10–19."""
    events = folder / "events"
    events.mkdir(exist_ok=True)
    lines = ["u,i,t,e"]
    date = f"{datetime(2025, 1, 1) + timedelta(days=day - 1):%Y-%m-%d}"
    for user in users:
        first = 0 if user % 2 == 0 else 10
        for step in range(6):
            item = first + (user + step * (1 + user % 3)) % 10
            lines.append(f"user{user},item{item},{date}T00:00:{step:02d}Z,view")
    lines.append(f"user{users[0]},item5,{date}T01:00:00Z,dislike")
    lines.append(f",item5,{date}T01:00:00Z,view")
    (events / f"day-{day:02d}.csv").write_text("\n".join(lines) + "\n")


def make_delivery(folder: Path) -> Path:
    """Write the first day, the items and ``tiny.yaml``."""
    folder.mkdir(parents=True)
    for genre, numbers in (("left", range(10)), ("right", range(10, 20))):
        rows = "".join(f"item{n},Title {n},{genre}\n" for n in numbers)
        (folder / f"{genre}.csv").write_text("item,title,genres\n" + rows)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    deliver(folder, 1, range(30))
    return folder


def configurer(delivery: Path, root: Path) -> Callable[..., Config]:
    """Return a function from overrides to the configuration of a delivery."""

    def configure(*overrides: str) -> Config:
        given = [f"data={delivery}", f"root={root}", *overrides]
        return load_config(delivery / "tiny.yaml", given)

    return configure
