"""``recs init``: guesses the configuration of raw events, and tells by what."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import yaml

from recs.config import EventType
from recs.guess.columns import Column, Sample, number_of
from recs.guess.doubts import doubts_of
from recs.guess.files import GuessError, Raw, find, require_one_kind
from recs.guess.kinds import event_type
from recs.guess.parquet import read_parquet
from recs.guess.roles import Roles, guess_roles
from recs.guess.text import read_csv, read_jsonl

#: Where comments begin, if there is room for them.
_MARGIN = 40

#: More ratings than these are not written out as types.
_FEW_RATINGS = 21

#: How far up from the lowest rating to the highest the likes begin: at 4 of 1 to 5.
_LIKED = 0.7


@dataclass(frozen=True)
class Draft:
    """A configuration as YAML, and what it was guessed by, a line each."""

    yaml: str
    notes: list[str]


def draft(path: str, given: Mapping[str, str]) -> Draft:
    """Return the configuration of raw events.

    Parameters
    ----------
    path
        A file, or a folder of files.
    given
        Columns by role, ``user``, ``item`` or ``timestamp``, that are not to be guessed.

    Raises
    ------
    GuessError
        If it cannot be guessed, with what would help.
    """
    raw = find(path)
    kind = require_one_kind(raw)
    first, *others = raw.files
    if kind == "parquet":
        sample = read_parquet(first)
    else:
        sample = read_jsonl(first) if kind == "jsonl" else read_csv(first, others)
    there = {column.name for column in sample.columns}
    by_folders = [
        Column(name, [value] * sample.rows)
        for name, value in first.partitions.items()
        if name not in there
    ]
    sample = replace(sample, columns=[*sample.columns, *by_folders])
    roles = guess_roles(sample, given)
    if raw.is_delta and not {"timestamp", "position"} & set(roles.found):
        raise GuessError(f"{path}: a Delta table keeps no order of rows: say --timestamp COLUMN")
    guessed = _Guessed("delta" if raw.is_delta else kind, raw, sample, roles)
    return Draft(guessed.yaml(), guessed.notes())


@dataclass(frozen=True)
class _Guessed:
    """Raw events, and what was guessed of them."""

    format: str
    raw: Raw
    sample: Sample
    roles: Roles

    @cached_property
    def names(self) -> dict[str, str]:
        """The names that columns get: without a header they are called by their roles."""
        unnamed = self.sample.fields or []
        by_role = {
            one.column.name: role
            for role, one in reversed(self.roles.found.items())  # of two roles, by the first
            if one.column.name in unnamed
        }
        return {
            column.name: by_role.get(column.name, column.name) for column in self.sample.columns
        }

    @property
    def command(self) -> str:
        """The command that runs the configuration."""
        return f"recs run --config mine.yaml data={shlex.quote(self.raw.data)} root=out/lake"

    @cached_property
    def types(self) -> dict[str, EventType]:
        """Types of events by name; none if no column tells them."""
        column = self.roles.column("event_type")
        names = [name for name, _ in column.counts.most_common()] if column else []
        return {name: event_type(name) or EventType() for name in names}

    # -- what is said ------------------------------------------------------------------------------

    def notes(self) -> list[str]:
        """Return what was guessed and why, a line each."""
        told = [f"format: {self.format} ({self.sample.rows:,} rows looked at)", *self.sample.notes]
        told += [f"left out: {name!r} holds lists or records" for name in self.sample.nested]
        told += [f"{role}: {self._told(role)}" for role in self.roles.found if role != "rating"]
        doubts = doubts_of(self.sample, self.roles.found)
        told += [f"warning: {warning}" for warning in (*self.roles.warnings, *doubts)]
        unknown = [repr(name) for name in self.types if event_type(name) is None]
        if unknown:
            told.append(f"warning: what {', '.join(unknown)} mean is not known: weigh them")
        if self._ratings:
            told.append("ratings: the YAML says how to make likes and dislikes of them")
        return [*told, f"next: {self.command}"]

    def _told(self, role: str) -> str:
        one = self.roles.found[role]
        name = f"{one.column.name!r}"
        if role == "timestamp" and one.form is not None:
            times = one.form.times(one.column.filled)
            kind = "kept as times" if one.column.is_time else one.form.told
            return f"{name}, {kind} ({one.why}; {min(times):%Y-%m-%d} to {max(times):%Y-%m-%d})"
        if role == "event_type":
            kinds = ", ".join(f"{name} {_said(kind)}" for name, kind in self.types.items())
            return f"{name} ({one.why}): {kinds}"
        if role == "weight":
            numbers = one.column.numbers
            return f"{name} ({one.why}; {min(numbers):g} to {max(numbers):g})"
        values = f"{len(one.column.counts):,} values in {self.sample.rows:,} rows"
        return f"{name} ({one.why}; {values})"

    # -- what is written ---------------------------------------------------------------------------

    def yaml(self) -> str:
        """Return the configuration, a key a line, with comments."""
        lines = [
            "# Guessed by `recs init` from the first rows: look it over, and run",
            f"#     {self.command}",
            "events:",
            _line("  sources:", "one or more deliveries"),
            *(_line(f"    {text}", comment) for text, comment in self._source()),
            *(_line(f"  {text}", comment) for text, comment in self._types()),
            *(f"  # {text}" for text in self._ratings),
            _line("models:", "what is fitted; sasrec, say, is a network"),
            "  - popularity",
            "  - slim",
            _line("split:", "which events are held out to measure by"),
            _line(*self._split()),
        ]
        return "\n".join([*lines, ""])

    def _source(self) -> Iterator[tuple[str, str]]:
        sample = self.sample
        yield f"- path: {_scalar(self.raw.path)}", "file, folder or glob in the data folder"
        yield f"  format: {self.format}", "csv, jsonl, parquet or delta"
        if self.format == "csv":
            yield f"  separator: {_scalar(sample.separator)}", "between values"
            yield (
                f"  quote: {_scalar(sample.quote)}",
                "around values that hold separators; '': none",
            )
        if self.format in ("csv", "jsonl"):
            yield f"  encoding: {sample.encoding}", "utf-8 or latin-1"
        if sample.fields:
            yield "  fields:", "names for the columns, for files without a header"
            for name in sample.fields:
                yield f"    - {_scalar(self.names[name])}", ""
        yield "  columns:", "which column plays which role"
        for role, comment in _ROLES.items():
            column = self.roles.column(role)
            if column is not None:
                yield f"    {role}: {_scalar(self.names[column.name])}", comment
            elif role == "timestamp":
                yield "    timestamp: null", "there are no times"
        if self.roles.context:
            yield "    context:", "kept beside the event"
            for column in self.roles.context:
                yield f"      - {_scalar(self.names[column.name])}", ""
        yield from self._time_format()

    def _time_format(self) -> Iterator[tuple[str, str]]:
        one = self.roles.found.get("timestamp")
        if one is None or one.column.is_time:
            return
        if one.form is None:
            yield "  timestamp_format: iso", "not known: mend it"
        elif one.form.undecided:
            yield f"  timestamp_format: {_scalar(one.form.name)}", "or do months come first?"
        else:
            comment = "iso, a unit since 1970 or a pattern of Spark"
            yield f"  timestamp_format: {_scalar(one.form.name)}", comment

    def _types(self) -> Iterator[tuple[str, str]]:
        if not self.types:
            return
        yield "types:", "all that were found; one that is not listed is rejected"
        for name, kind in self.types.items():
            yield f"  {_scalar(name)}:", ""
            known = event_type(name) is not None
            yield f"    weight: {kind.weight:g}", "" if known else "not known: mend it"
            if kind.polarity != "positive":
                yield f"    polarity: {kind.polarity}", _POLARITIES[kind.polarity]
        positive = [name for name, kind in self.types.items() if kind.polarity == "positive"]
        default = min(positive or self.types, key=lambda name: self.types[name].weight)
        yield f"default_type: {_scalar(default)}", "of events whose type is not said"

    @cached_property
    def _ratings(self) -> list[str]:
        """How ratings are written as types, where nothing else tells types."""
        column = self.roles.column("rating")
        if column is None or self.types or not 1 < len(column.counts) <= _FEW_RATINGS:
            return []
        name = _scalar(self.names[column.name])
        numbers = {text: n for text in column.counts if (n := number_of(text)) is not None}
        lowest, highest = min(numbers.values()), max(numbers.values())
        liked = lowest + _LIKED * (highest - lowest)
        instead = f"for `weight: {name}`" if "weight" in self.roles.found else "to the columns"
        lines = [
            f"To tell likes from dislikes, write `event_type: {name}` {instead}, and take in:",
            "types:",
        ]
        for text in sorted(numbers, key=lambda text: numbers[text]):
            polarity = "positive" if numbers[text] >= liked else "negative"
            lines += [f"  {_scalar(text)}:", f"    polarity: {polarity}"]
        return [*lines, f"default_type: {_scalar(max(numbers, key=lambda text: numbers[text]))}"]

    def _split(self) -> tuple[str, str]:
        if {"timestamp", "position"} & set(self.roles.found):
            return "  method: leave_one_out", "a user's last event is the test, or global_time"
        return "  method: random", "leave_one_out if lines are in the order of time"


#: Roles in the order in which they are written, and what to say of them.
_ROLES = {
    "user": "who",
    "item": "what",
    "timestamp": "when",
    "position": "whole numbers that order the events",
    "event_type": "what has happened, one of the types below",
    "weight": "what an event counts where slim.values is weight",
}

_POLARITIES = {
    "negative": "not wanted, never recommended",
    "shown": "neither wanted nor seen",
}


def _said(kind: EventType) -> str:
    """Return a type in few words."""
    return f"{kind.weight:g}" if kind.polarity == "positive" else kind.polarity


def _scalar(text: str) -> str:
    """Return a text as YAML, on one line."""
    style = None if text.isprintable() else '"'
    written = yaml.safe_dump(text, default_style=style, allow_unicode=True, width=float("inf"))
    return written.removesuffix("\n").removesuffix("\n...")


def _line(text: str, comment: str) -> str:
    """Return a line of YAML with a comment, if there is one."""
    return f"{text:<{_MARGIN}}  # {comment}" if comment else text
