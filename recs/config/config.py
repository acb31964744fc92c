"""The whole of a configuration."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from recs.config.checks import check_as_of, check_candidates, check_event_types, check_hold_out
from recs.config.errors import ConfigError
from recs.config.evaluation import Evaluate, Recommend, Sequentiality
from recs.config.models import (
    NETWORKS,
    ModelName,
    NetworkName,
    Popularity,
    Slim,
    TunedNetwork,
    TuneSlim,
)
from recs.config.preparation import Export, Negatives, Sequences, Split
from recs.config.sources import CandidateSource, Delivery, Events, ItemSource, UserSource
from recs.config.spark import spark_settings
from recs.config.upkeep import Upkeep
from recs.config.values import Different, Moment
from recs.settings import Strict
from recs.storage import (
    StorageError,
    absolute,
    check_catalog,
    check_uri,
    has_scheme,
    join,
    may_exist,
    redact,
)
from recs.training.settings import Processes


class Config(Strict):
    """Everything a pipeline needs."""

    name: str = Field(pattern=r"^[^/\\\x00-\x1f]{1,100}$", description="no path")
    root: str
    catalog: str | None = None
    mode: Literal["backtest", "serve"] = "backtest"
    seed: int = 42
    run_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}$")
    as_of: Moment | None = Field(
        None, description="only events before this time are used, as on that day; see docs/days.md"
    )
    rebuild: bool = Field(False, description="make all tables anew instead of extending them")
    data: str | None = None
    folder: str | None = Field(None, description="subfolder of data, where data holds several sets")
    models: Annotated[list[ModelName], Different] = ["popularity", "slim"]
    events: Events
    items: list[ItemSource] = []
    users: list[UserSource] = []
    candidates: list[CandidateSource] = []
    split: Split = Split()
    sequences: Sequences | None = None
    negatives: Negatives | None = None
    sequentiality: Sequentiality = Sequentiality()
    slim: Slim = Slim()
    popularity: Popularity = Popularity()
    export: Export = Export()
    networks: dict[NetworkName, TunedNetwork] = {}
    processes: Processes = Processes()
    recommend: Recommend = Recommend()
    evaluate: Evaluate = Evaluate()
    tune_slim: TuneSlim = TuneSlim()
    upkeep: Upkeep = Upkeep()
    spark: dict[str, str] = {}

    @field_validator("spark", mode="before")
    @classmethod
    def _as_spark_writes_them(cls, value: Any) -> Any:
        return spark_settings(value) if isinstance(value, dict) else value

    @field_validator("models", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _networks_are_named(cls, values: Any) -> Any:
        """Give each network of ``models`` its section, so that settings are where one looks."""
        models = values.get("models") if isinstance(values, dict) else None
        names = models.split(",") if isinstance(models, str) else models
        asked = [str(name).strip() for name in names] if isinstance(names, list) else []
        known: dict[str, Any] = {name: {} for name in asked if name in NETWORKS}
        return {**values, "networks": known | (values.get("networks") or {})} if known else values

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        check_hold_out(self.export, self.evaluate, self.sequences)
        check_candidates(self.evaluate, self.candidates)
        check_as_of(self.as_of, self.events)
        check_event_types(self.events, self.sequences, self.negatives)
        return self

    @field_validator("catalog")
    @classmethod
    def _names_a_schema(cls, value: str | None) -> str | None:
        return None if value is None else _checked(check_catalog, value)

    @field_validator("root", "data")
    @classmethod
    def _safe_uri(cls, value: str | None) -> str | None:
        return None if value is None else absolute(_checked(check_uri, value))

    def hash(self, *keys: str) -> str:
        """Return a hash of the settings with these keys, the same for equal values.

        Keys are dotted; ``*`` stands for all keys of a mapping, or elements of a list. A setting
        that has its default does not count, so that a new one changes no hash.
        """
        given = self.model_dump(mode="json", exclude_defaults=True)
        given["events"].pop("expect", None)  # it lets a delivery pass or fail, and changes nothing
        values = {key: _pick(given, key.split(".")) for key in keys}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def pick(self, *keys: str) -> dict[str, Any]:
        """Return the settings with these keys, whole."""
        whole = self.model_dump(mode="json")
        return {key: _pick(whole, key.split(".")) for key in keys}

    def require_sources(self) -> None:
        """Refuse to ingest where a source is missing, or two sources of events read one path.

        The second would find nothing new in it.

        Raises
        ------
        ConfigError
            With the path.
        """
        for source in (*self.items, *self.users, *self.candidates):
            self.locate(source)
        paths = [self.locate(source) for source in self.events.sources]
        for number, path in enumerate(paths):
            first = paths.index(path)
            if first < number:
                raise ConfigError(
                    f"events.sources.{first} and events.sources.{number} both read "
                    f"{redact(path)}: give each its own files"
                )

    def locate(self, source: Delivery) -> str:
        """Return the path of a source: the first of its alternatives that exists.

        Of remote paths the first is returned as it is; Spark tells if it is missing.

        Raises
        ------
        ConfigError
            If a local path does not exist.
        """
        tried = []
        bases = [self.data] if self.data else []
        if self.data and self.folder:
            bases.insert(0, join(self.data, self.folder))
        for path in source.paths:
            whole = has_scheme(path) or os.path.isabs(path)
            for full in [path] if whole else [join(base, path) for base in bases]:
                for name in (full, full + ".gz"):
                    if may_exist(check_uri(name)):
                        return name
                tried.append(full)
        if not self.data and not tried:
            raise ConfigError(
                f"{source.paths[0]!r} lies in the data folder: give it as data=FOLDER"
            )
        raise ConfigError(
            f"none of these exists: {', '.join(tried)}; give the folder as data=FOLDER"
        )


def _checked(check: Callable[[str], str], name: str) -> str:
    """Return what a check of storage returns, of whose errors validation makes its own."""
    try:
        return check(name)
    except StorageError as error:
        raise ValueError(str(error)) from error


def _pick(node: Any, parts: list[str]) -> Any:
    """Return what a key, in parts, stands for below ``node``; None of what is not there."""
    if not parts or node is None:
        return node
    if parts[0] == "*" and isinstance(node, list):
        return [_pick(value, parts[1:]) for value in node]
    if parts[0] == "*":
        return {key: _pick(value, parts[1:]) for key, value in node.items()}
    return _pick(node.get(parts[0]), parts[1:])
