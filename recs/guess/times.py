"""Which ``timestamp_format`` texts and numbers are in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from recs.config import TIME_UNITS, Events
from recs.guess.columns import number_of

#: Share of the values that a format has to read for it to be theirs.
_ENOUGH = 0.9

#: Times from here on count, as events.floor has it by default; to there, numbers are times.
FIRST: datetime = Events.model_fields["floor"].default
LAST = datetime(2100, 1, 1)


@dataclass(frozen=True)
class TimeFormat:
    """A format of times.

    Attributes
    ----------
    name
        As ``timestamp_format`` takes it.
    told
        The same in words.
    read
        Returns a text's time in UTC; None where the format does not read it.
    undecided
        Whether days and months could as well stand the other way round.
    """

    name: str
    told: str
    read: Callable[[str], datetime | None]
    undecided: bool = False

    def times(self, values: Sequence[str]) -> list[datetime]:
        """Return the plausible times among values."""
        found = [self.read(value) for value in values]
        return [time for time in found if time is not None and FIRST <= time < LAST]


def time_format(values: Sequence[str]) -> TimeFormat | None:
    """Return the format that reads nearly all values as plausible times; None if there is none."""
    # Values from all over tell as much as all; of most columns a few tell that they are no times.
    some, few = _spread(values, 5000), _spread(values, 100)
    for form in (*_UNITS, ISO, *_COMPACT):
        if _reads(form, few) and _reads(form, some):
            return form
    pattern = _pattern(some) if few and _pattern(few) else None
    return pattern if pattern and _reads(pattern, some) else None


def _spread(values: Sequence[str], number: int) -> Sequence[str]:
    return values[:: -(-len(values) // number) or 1]


def _reads(form: TimeFormat, values: Sequence[str]) -> bool:
    return bool(values) and len(form.times(values)) >= _ENOUGH * len(values)


# -- numbers --------------------------------------------------------------------------------------


def _unit(name: str, scale: int) -> TimeFormat:
    # Of the smaller units ingest reads whole numbers alone.
    whole = scale > 1000

    def read(text: str) -> datetime | None:
        number = number_of(text)
        if number is None or (whole and not text.lstrip("-").isdecimal()):
            return None
        try:
            return datetime.fromtimestamp(number / scale, UTC).replace(tzinfo=None)
        except (ValueError, OverflowError, OSError):
            return None

    return TimeFormat(name, f"{name} since 1970", read)


_UNITS = [_unit(name, 1000**power) for power, name in enumerate(TIME_UNITS)]


# -- texts ----------------------------------------------------------------------------------------

_ISO = re.compile(
    r"(\d{4})-(\d{1,2})-(\d{1,2})"
    r"(?:[T ](\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.\d{1,9})?)?"
    r"(?: ?(?:Z|UTC|[+-]\d{2}:?\d{2}))?)?"
)


def _read_iso(text: str) -> datetime | None:
    match = _ISO.fullmatch(text)
    return _moment(*(int(part or 0) for part in match.groups())) if match else None


def _moment(*parts: int) -> datetime | None:
    try:
        return datetime(*parts)  # type: ignore[arg-type]
    except ValueError:
        return None


ISO = TimeFormat("iso", "ISO dates or times", _read_iso)


def _compact(pattern: str) -> TimeFormat:
    def read(text: str) -> datetime | None:
        if len(text) != len(pattern) or not text.isdecimal():
            return None
        return _moment(int(text[:4]), *(int(text[n : n + 2]) for n in range(4, len(text), 2)))

    return TimeFormat(pattern, f"digits as in {pattern}", read)


_COMPACT = [_compact(pattern) for pattern in ("yyyyMMdd", "yyyyMMddHHmm", "yyyyMMddHHmmss")]

_TOKEN = re.compile(r"\d+|[A-Za-z]+|[^A-Za-z\d]+")
_MONTHS = "january february march april may june july august september october november december"
_MONTH_OF = {
    form: number
    for number, name in enumerate(_MONTHS.split(), start=1)
    for form in (name[:3], name)
}
#: Orders of day, month and year, the likelier ones first.
_ORDERS = ("dMy", "Mdy", "yMd")
#: What may stand between the parts of a date, and after it.
_IN_DATES = {"/", "-", ".", " ", ", ", ". "}
_IN_CLOCKS = [{" ", ", ", ":"}, {":"}, {":"}, {".", ","}]


def _shape(text: str) -> tuple[str, ...] | None:
    """Return what a time is made of: ``0`` (a number), ``Mon``, ``Month``, ``am``, and signs.

    None if it is no date, with or without a time of day.
    """
    shape = []
    for token in _TOKEN.findall(text):
        if token.isdecimal():
            shape.append("0")
        elif token.lower() in _MONTH_OF:
            shape.append("Mon" if len(token) == 3 else "Month")
        elif token.lower() in ("am", "pm"):
            shape.append("am")
        elif token.isalpha():
            return None
        else:
            shape.append(token)
    if shape[-1:] == ["am"]:
        body = shape[:-2] if shape[-2:-1] == [" "] else shape[:-1]
        if len(body) < 9:  # no date, hour and minute before it
            return None
    else:
        body = shape
    between = body[1::2]
    values = body[::2]
    fits = (
        len(values) in (3, 5, 6, 7)
        and len(body) % 2 == 1
        and set(between[:2]) <= _IN_DATES
        and all(sign in signs for sign, signs in zip(between[2:], _IN_CLOCKS, strict=False))
        and set(values[2:]) == {"0"}
        and values[:2] in (["0", "0"], ["0", "Mon"], ["0", "Month"], ["Mon", "0"], ["Month", "0"])
    )
    return tuple(shape) if fits else None


def _pattern(values: Sequence[str]) -> TimeFormat | None:
    """Return the datetime pattern of Spark that reads most values."""
    ((shape, _),) = Counter(map(_shape, values)).most_common(1)
    if shape is None:
        return None
    alike = [_TOKEN.findall(value) for value in values if _shape(value) == shape]
    lengths = [{len(token) for token in tokens} for tokens in zip(*alike, strict=True)]
    forms = [form for order in _ORDERS if (form := _in_order(order, shape, lengths)) is not None]
    if not forms:
        return None
    # American texts have both their order and their clock.
    forms.sort(key=lambda form: form.name.startswith("M") != ("am" in shape))
    read = [len(form.times(values)) for form in forms]
    best = forms[read.index(max(read))]
    undecided = read.count(max(read)) > 1
    return TimeFormat(best.name, best.told, best.read, undecided)


def _in_order(order: str, shape: tuple[str, ...], lengths: Sequence[set[int]]) -> TimeFormat | None:
    """Return the format of texts of a shape whose dates have this order; None if none has."""
    named = next((n for n in (0, 1) if shape[2 * n] != "0"), None)
    year = 2 * order.index("y")
    if named is not None and order[named] != "M":
        return None
    if lengths[year] != {4} and not (lengths[year] == {2} and year == 4):
        return None
    if any(max(lengths[n]) > 2 for n in (0, 2, 4) if n != year and shape[n] == "0"):
        return None
    half = "am" in shape
    letters = order + ("hmsf" if half else "Hmsf")  # the last is a fraction
    pattern, place = "", {}
    for n, (part, found) in enumerate(zip(shape, lengths, strict=True)):
        if part == "am":
            pattern += "a"
        elif n % 2 or part == " ":
            pattern += part
        else:
            letter = letters[n // 2]
            place[letter.lower() if n > 4 else letter] = n
            pattern += _letters(letter, part, found)
    return TimeFormat(pattern, f"texts as in {pattern}", _reader(shape, place, half))


def _letters(letter: str, part: str, lengths: set[int]) -> str:
    """Return the letters of a pattern for numbers of these lengths."""
    if part in ("Mon", "Month"):
        return "MMM" if part == "Mon" else "MMMM"
    if letter == "y":
        return "y" * max(lengths)
    if letter == "f":
        return "S" * max(lengths)
    return letter if 1 in lengths else letter * 2


def _reader(
    shape: tuple[str, ...], place: dict[str, int], half: bool
) -> Callable[[str], datetime | None]:
    def read(text: str) -> datetime | None:
        if _shape(text) != shape:
            return None
        tokens = _TOKEN.findall(text)
        parts = {letter: tokens[n] for letter, n in place.items()}
        year = int(parts["y"]) + (2000 if len(parts["y"]) == 2 else 0)
        month = _MONTH_OF.get(parts["M"].lower()) or int(parts["M"])
        hour = int(parts.get("h", 0))
        if half:
            hour = hour % 12 + (12 if tokens[-1].lower() == "pm" else 0)
        clock = (int(parts.get("m", 0)), int(parts.get("s", 0)))
        return _moment(year, month, int(parts["d"]), hour, *clock)

    return read
