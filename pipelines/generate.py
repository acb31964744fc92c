"""``recs generate``: a log with planted structure, of any size, in a folder of raw files."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any, Literal

from recs.config import ConfigError
from recs.storage import filesystem, join, write_file

#: Says what a folder holds, so that two logs are never mixed in one; Spark reads no such name.
_NOTE = "_generated.json"


@dataclass(frozen=True)
class Settings:
    """What ``recs generate`` is asked for.

    Attributes
    ----------
    data
        Folder or URI to write to.
    events, days, first_day, heavy_user_events, seed
        See :class:`recs.data.synthetic.SyntheticConfig`.
    users, items, clusters
        Counts; 0 is for what suits the events: 50 events a user, three users an item up to a
        million items, 50 items a cluster up to a thousand clusters.
    bad_share
        Bad rows for each event.
    format
        Of the events: ``csv`` or ``parquet``.
    """

    data: str
    events: int = 150_000
    users: int = 0
    items: int = 0
    clusters: int = 0
    days: int = 30
    first_day: date = date(2025, 1, 1)
    heavy_user_events: int = 0
    bad_share: float = 0.01
    seed: int = 42
    format: Literal["csv", "parquet"] = "csv"

    def scaled(self) -> Settings:
        """Return the settings with all counts given."""
        users = self.users or max(1, self.events // 50)
        items = self.items or min(max(1, users // 3), 1_000_000)
        clusters = self.clusters or min(max(1, items // 50), 1_000)
        return replace(self, users=users, items=items, clusters=clusters)


def parse(arguments: list[str]) -> Settings:
    """Read ``key=value`` arguments; whole numbers may be written as 1e9.

    Raises
    ------
    ConfigError
        Naming the key at fault and, for an unknown one, the nearest known.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r} must have the form key=value, as in events=1e6")
        if key not in _READ:
            (near,) = difflib.get_close_matches(key, _READ, n=1, cutoff=0.0)
            raise ConfigError(f"unknown key {key!r}; the nearest known key is {near!r}")
        try:
            values[key] = _READ[key](text)
        except (ValueError, ArithmeticError) as error:
            raise ConfigError(f"key {key!r}: {text!r} is {_MEANT[_READ[key]]}") from error
    if not values.get("data"):
        raise ConfigError("no folder to write to is given: add data=FOLDER (local, s3a://, …)")
    return Settings(**values)


def _whole(text: str) -> int:
    number = Decimal(text.replace("_", ""))
    if number != number.to_integral_value():
        raise ValueError
    return int(number)


def _format(text: str) -> str:
    if text not in ("csv", "parquet"):
        raise ValueError
    return text


_READ: Mapping[str, Callable[[str], Any]] = {
    "data": str,
    **dict.fromkeys(("events", "users", "items", "clusters", "days"), _whole),
    "first_day": date.fromisoformat,
    "heavy_user_events": _whole,
    "bad_share": float,
    "seed": _whole,
    "format": _format,
}
_MEANT: Mapping[Callable[[str], Any], str] = {
    _whole: "no whole number, as 150000 or 1e9",
    date.fromisoformat: "no day, as 2025-01-31",
    float: "no number, as 0.01",
    _format: "neither csv nor parquet",
}


def generate_log(settings: Settings, *, verbose: bool = False) -> dict[str, Any]:
    """Write the log and return ``folder``, ``rows`` by kind, and ``seconds``.

    A folder that holds the same log, or what a killed attempt at it left, is written anew, to the
    same bytes.

    Raises
    ------
    ConfigError
        If a number is out of range, or the folder holds something else.
    """
    from recs.data.synthetic import SyntheticConfig, generate, write
    from recs.session import get_session

    settings = settings.scaled()
    try:
        config = SyntheticConfig(
            num_events=settings.events,
            num_users=settings.users,
            num_items=settings.items,
            num_clusters=settings.clusters,
            num_days=settings.days,
            first_day=settings.first_day,
            heavy_user_events=settings.heavy_user_events,
            seed=settings.seed,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    asked = {key: value for key, value in asdict(settings).items() if key != "data"}
    asked["first_day"] = str(settings.first_day)
    _require_own(settings.data, asked)
    started = time.monotonic()
    spark = get_session("recs generate", verbose=verbose)
    _put_note(settings.data, {"settings": asked})
    log = generate(spark, config)
    rows = write(log, settings.data, bad_share=settings.bad_share, format=settings.format)
    _put_note(settings.data, {"settings": asked, "rows": rows})
    seconds = round(time.monotonic() - started, 3)
    return {"folder": settings.data, "rows": rows, "seconds": seconds}


def is_whole(folder: str) -> bool:
    """Tell whether a log was written into the folder to its end."""
    return "rows" in _note(folder)


def _require_own(folder: str, asked: dict[str, Any]) -> None:
    fs, path = filesystem(folder)
    if not fs.exists(path) or not fs.ls(path):
        return
    found = _note(folder).get("settings")
    if found is None:
        raise ConfigError(f"folder {folder} holds other files; give an empty one as data=FOLDER")
    other = [f"{key}={found.get(key)}" for key in asked if found.get(key) != asked[key]]
    if other:
        raise ConfigError(
            f"folder {folder} holds a log generated with {' '.join(other)}; "
            "give another one as data=FOLDER, or remove it"
        )


def _note(folder: str) -> dict[str, Any]:
    fs, path = filesystem(join(folder, _NOTE))
    return json.loads(fs.cat_file(path)) if fs.exists(path) else {}


def _put_note(folder: str, note: dict[str, Any]) -> None:
    write_file(join(folder, _NOTE), json.dumps(note, indent=1).encode())
