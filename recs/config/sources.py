"""What is delivered: sources of events, items, users and candidates."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from recs.config.values import Moment, NonNegative, PositiveInt, Separator, Share
from recs.schema import MAX_TYPE_WEIGHT
from recs.settings import Strict


class Delivery(Strict):
    """Where something to read lies.

    Attributes
    ----------
    path
        One path, or several of which the first that exists is read; relative paths are looked up
        in the data folder, with and without ``.gz``. A folder is read whole, with its subfolders.
    """

    path: str | list[str]

    @property
    def paths(self) -> list[str]:
        """The alternatives of ``path``."""
        return [self.path] if isinstance(self.path, str) else self.path


class Source(Delivery):
    """Files or a table to read.

    Attributes
    ----------
    format
        ``csv`` (any separator), ``jsonl``, ``parquet`` or ``delta``.
    quote
        Around values of a csv file that hold separators; doubled, it stands for itself.
    fields
        Names of the columns of a csv file, in order; None takes them from its first line.
    changes
        Of a Delta table, from which only added rows are read: whether commits that change or delete
        rows are refused, or passed over (``skip``).
    """

    format: Literal["csv", "jsonl", "parquet", "delta"] = "csv"
    separator: Separator = ","
    quote: str = '"'
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    fields: list[str] | None = None
    changes: Literal["refuse", "skip"] = "refuse"


#: Letters of Spark's datetime patterns; others are none of them, or for printing alone.
_PATTERN_LETTERS = set("GyMLdEaFDQqHhKkmsSVzOXxZ")

#: Numbers since 1970.
TIME_UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")


def _time_format(form: str) -> str:
    unquoted = re.sub(r"'[^']*'", "", form)
    wrong = [c for c in unquoted if (c.isalpha() and c not in _PATTERN_LETTERS) or c in "%{}#"]
    if form not in ("iso", *TIME_UNITS) and (wrong or not any(c.isalpha() for c in unquoted)):
        said = f" ({wrong[0]!r} is no letter of one)" if wrong else ""
        raise ValueError(
            f"is none of iso, {', '.join(TIME_UNITS)}, and no datetime pattern of Spark{said}, as "
            "dd/MM/yyyy HH:mm:ss is"
        )
    return form


class EventColumns(Strict):
    """Which column of the data plays which role.

    ``timestamp`` has no default: data without times says so with ``timestamp: null``. ``position``,
    a whole number, orders events of one time, or all of them where there are no times; what ties
    are left, lines of files break.
    """

    user: str
    item: str
    timestamp: str | None
    position: str | None = None
    event_type: str | None = None
    weight: str | None = None
    context: list[str] = []


class EventSource(Source):
    """Event files; ``held_out`` names the split that the data set's own files give them.

    ``timestamp_format`` is of texts and numbers: ``iso`` (a date, with or without a time of day),
    ``seconds``, ``milliseconds``, ``microseconds`` or ``nanoseconds`` since 1970, or a datetime
    pattern of Spark. Times that Parquet and Delta keep as such are taken as they are.
    """

    columns: EventColumns
    timestamp_format: Annotated[str, AfterValidator(_time_format)] = "iso"
    held_out: Literal["train", "validation", "test"] | None = None

    @property
    def has_unit(self) -> bool:
        """Whether it is known of what unit numbers are that stand for times."""
        return self.timestamp_format in TIME_UNITS

    @model_validator(mode="after")
    def _order_is_known(self) -> EventSource:
        ordered = self.columns.timestamp or self.columns.position
        if self.format == "delta" and not ordered:
            raise ValueError(
                "a Delta table keeps no order of rows: give columns.timestamp or columns.position"
            )
        return self


class EventType(Strict):
    """A kind of event: what it weighs, and what it says of the user and the item.

    ``positive``: wanted; ``negative``: not wanted, never recommended again; ``shown``: put
    before the user, who may not take it: neither a positive nor seen, but it can be a negative.
    """

    weight: Annotated[NonNegative, Field(le=MAX_TYPE_WEIGHT)] = 1.0
    polarity: Literal["positive", "negative", "shown"] = "positive"


class Expect(Strict):
    """What each delivery of events is held to; one that is not so fails, and changes nothing.

    Attributes
    ----------
    min_rows
        New events at least; a run without any fails too.
    max_age_hours
        Hours that the newest event of all deliveries may lie behind the start of the run.
    max_times
        Times that the share of rejected rows, of duplicates, or of users never seen before may be
        what it was in the middle of the last 14 runs. Shares of at most 1% are always well.
    """

    min_rows: PositiveInt | None = None
    max_age_hours: Annotated[float, Field(gt=0)] | None = None
    max_times: Annotated[float, Field(gt=1)] | None = None


class Events(Strict):
    """What is delivered, and what is accepted of it."""

    sources: list[EventSource] = Field(min_length=1)
    types: dict[str, EventType] = {"view": EventType()}
    default_type: str = "view"
    floor: Moment = datetime(1990, 1, 1)
    allowed_skew_hours: NonNegative = 24.0
    max_reject_share: Share = 0.1
    expect: Expect = Expect()

    @property
    def shown(self) -> list[str]:
        """Types of polarity ``shown``."""
        return [name for name, kind in self.types.items() if kind.polarity == "shown"]

    @model_validator(mode="after")
    def _default_type_is_known(self) -> Events:
        if self.default_type not in self.types:
            raise ValueError(
                f"default_type {self.default_type!r} is none of types {list(self.types)}"
            )
        return self


class CandidateSource(Delivery):
    """Candidate lists in NCF's form: ``(user,item)`` and its candidates, tab separated."""

    format: Literal["ncf"] = "ncf"
    encoding: Literal["utf-8", "latin-1"] = "utf-8"


class ItemSource(Source):
    """What is known of items. ``category_flags`` are 0/1 columns named by their category."""

    item: str
    title: str | None = None
    categories: str | None = None
    category_separator: Separator = "|"
    category_flags: list[str] = []
    text: str | None = None
    attributes: list[str] = []


class UserSource(Source):
    """What is known of users."""

    user: str
    attributes: list[str] = []
