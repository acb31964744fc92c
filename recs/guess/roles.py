"""Which column plays which role, by names and, where they say nothing, by values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from recs.guess import names
from recs.guess.columns import Column, Sample
from recs.guess.files import GuessError
from recs.guess.kinds import event_type
from recs.guess.times import ISO, TimeFormat, time_format

#: More columns than these are no context, and without a header nobody knows what they are.
_FEW_COLUMNS = 8

#: More values than these are no types of events.
_FEW_VALUES = 50

#: Characters of a value, on average, from which on it is prose.
_PROSE = 32

#: Share of negative numbers from which on a column is no weight, which must not be negative.
_SOME = 0.05

#: Products of Amazon: its data sets without a header have them before or after the users.
_ASIN = re.compile(r"B0[0-9A-Z]{8}|\d{9}[0-9X]")


@dataclass(frozen=True)
class Found:
    """A column, why it has its role, and the format of its times if it has any."""

    column: Column
    why: str
    form: TimeFormat | None = None


@dataclass(frozen=True)
class Roles:
    """Columns by their roles: ``user`` and ``item``, and what of the others there is.

    Attributes
    ----------
    found
        Roles as the configuration names them, and ``rating``, which is a weight or could be a type.
    context
        Other columns, if they are few.
    warnings
        What was left out, a line each.
    """

    found: dict[str, Found]
    context: list[Column]
    warnings: list[str]

    def column(self, role: str) -> Column | None:
        """Return the column of a role; None if there is none."""
        return self.found[role].column if role in self.found else None


def guess_roles(sample: Sample, given: Mapping[str, str]) -> Roles:
    """Return the roles of columns.

    Parameters
    ----------
    sample
        Rows of the data.
    given
        Columns by role, ``user``, ``item`` or ``timestamp``, that are not to be guessed.

    Raises
    ------
    GuessError
        If no column looks like a user or an item, or one that is given is not there.
    """
    free = list(sample.columns)
    found: dict[str, Found] = {}
    for role, name in given.items():
        column = next((column for column in free if column.name == name), None)
        if column is None:
            raise GuessError(
                f"--{role} {name}: no such column, or it has a role already; there are "
                f"{_there(sample)}"
            )
        found[role] = Found(column, "as you say", _form(column) if role == "timestamp" else None)
        free.remove(column)
    if sample.fields is None:
        searches = _BY_NAME
    else:
        searches = _BY_VALUE if len(sample.columns) <= _FEW_COLUMNS else ()
    for role, search in searches:
        if role not in found and (one := search(free, found)) is not None:
            found[role] = one
            free.remove(one.column)
    for role in ("user", "item"):
        if role not in found:
            raise GuessError(
                f"no column looks like {_SAID[role]}: say --{role} COLUMN, one of {_there(sample)}"
            )
    context, warnings = _context(free)
    _weigh(found, warnings)
    return Roles(found, context, warnings)


_SAID = {"user": "a user", "item": "an item"}


def _there(sample: Sample) -> str:
    """Return the names of all columns."""
    there = [column.name for column in sample.columns]
    if sample.fields and len(there) > _FEW_COLUMNS:
        return f"{there[0]} to {there[-1]}"
    unnest = f" (unnest {', '.join(sample.nested)} before)" if sample.nested else ""
    return ", ".join(there) + unnest


def _context(free: Sequence[Column]) -> tuple[list[Column], list[str]]:
    """Return the columns that are kept as context, and which are not."""
    kept = [column for column in free if column.filled and column.mean_length <= _PROSE]
    if len(kept) > _FEW_COLUMNS:
        return [], [f"{len(kept)} other columns are left out: name in `context` which to keep"]
    left = ", ".join(repr(column.name) for column in free if column not in kept)
    return kept, [f"left out as prose or empty: {left}"] if left else []


def _weigh(found: dict[str, Found], warnings: list[str]) -> None:
    """Make the rating, a count or a price the weight, if it is not negative."""
    one = found.get("rating") or found.pop("count", None)
    if one is None:
        return
    negative = sum(number < 0 for number in one.column.numbers)
    if negative <= _SOME * len(one.column.numbers):
        found["weight"] = one
    else:
        warnings.append(
            f"{one.column.name!r} is no weight: {negative:,} of its values are negative"
        )


# -- searches -------------------------------------------------------------------------------------

_Search = Callable[[Sequence[Column], Mapping[str, Found]], Found | None]


def _ranked(free: Sequence[Column], words: Sequence[str]) -> list[Column]:
    """Return the columns whose names fit words, the best first."""
    ranks = [(rank, n) for n, c in enumerate(free) if (rank := names.match(c.name, words))]
    return [free[n] for _, n in sorted(ranks)]


def _first(columns: Iterable[Column], why: str) -> Found | None:
    column = next(iter(columns), None)
    return Found(column, why) if column else None


def _named_user(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    # A column that is hardly ever filled is of those who have logged in.
    ranked = _ranked(free, names.USERS)
    known = [column for column in ranked if column.share >= 0.5]
    return _first([*known, *_ranked(free, names.SESSIONS), *ranked], "by its name")


def _named_item(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    return _first(_ranked(free, names.ITEMS), "by its name")


def _named_time(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    for column in _ranked(free, names.TIMES):
        if (form := _form(column)) is not None:
            return Found(column, "by its name and values", form)
    for column in free:
        # Numbers of which no name says what they are may be ids.
        if not column.is_numeric and (form := _form(column)) is not None:
            return Found(column, "by its values", form)
    return None


def _time(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    # The last one: ids, which come before, may be as large.
    for column in reversed(free):
        if (form := _form(column)) is not None:
            return Found(column, "by its values", form)
    return None


def _form(column: Column) -> TimeFormat | None:
    if column.is_time:
        return ISO if ISO.times(column.filled) else None
    return time_format(column.filled)


def _named_position(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    if "timestamp" in found:
        return None
    words = (*names.POSITIONS, "timestamp", "ts", "time")
    ordered = (c for c in free if names.is_any(c.name, words) and c.is_whole)
    return _first(ordered, "by its name: whole numbers that are no times")


def _named_type(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    ranked = [
        c for c in _ranked(free, names.EVENT_TYPES) if names.is_any(c.name, names.EVENT_TYPES)
    ]
    return _first(filter(_are_few, ranked), "by its name")


def _type(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    def are_types(column: Column) -> bool:
        known = sum(event_type(value) is not None for value in column.counts)
        return _are_few(column) and 2 * known >= len(column.counts)

    return _first(filter(are_types, free), "by its values")


def _are_few(column: Column) -> bool:
    """Tell whether values are so few and short that they may be types of events."""
    return 0 < len(column.counts) <= _FEW_VALUES and column.mean_length <= _PROSE


def _named_rating(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    return _numeric(free, names.RATINGS)


def _numeric(free: Sequence[Column], words: Sequence[str]) -> Found | None:
    return _first((c for c in _ranked(free, words) if c.is_numeric), "by its name")


def _named_count(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    if "rating" in found:
        return None
    # A dear item that was only looked at would outweigh a cheap one that was bought.
    words = names.COUNTS if "event_type" in found else (*names.COUNTS, *names.PRICES)
    return _numeric(free, words)


def _rating(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    if len(free) <= len({"user", "item"} - set(found)):  # these alone are left
        return None

    def are_ratings(column: Column) -> bool:
        numbers = set(column.numbers)
        in_steps = all(0 <= number <= 10 and (2 * number).is_integer() for number in numbers)
        return column.is_numeric and any(numbers) and in_steps

    return _first(filter(are_ratings, reversed(free)), "by its values: numbers from 0 to 10")


def _product(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
    def are_products(column: Column) -> bool:
        fit = sum(n for value, n in column.counts.items() if _ASIN.fullmatch(value))
        return fit > len(column.filled) / 2 and not _form(column)

    return _first(filter(are_products, free), "by its values: product numbers of Amazon")


def _id(place: str) -> _Search:
    def search(free: Sequence[Column], found: Mapping[str, Found]) -> Found | None:
        whole = (c for c in free if c.filled and all(n.is_integer() for n in c.numbers))
        return _first(whole, place)

    return search


#: Of data whose columns have names. What comes first has the first choice.
_BY_NAME: Sequence[tuple[str, _Search]] = (
    ("user", _named_user),
    ("item", _named_item),
    ("timestamp", _named_time),
    ("event_type", _named_type),
    ("rating", _named_rating),
    ("event_type", _type),
    ("position", _named_position),
    ("count", _named_count),
)

#: Of data whose columns have none.
_BY_VALUE: Sequence[tuple[str, _Search]] = (
    ("timestamp", _time),
    ("event_type", _type),
    ("item", _product),
    ("rating", _rating),
    ("user", _id("the first column of ids")),
    ("item", _id("the next column of ids")),
)
