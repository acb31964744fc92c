"""Columns of a sample of raw data, with the values that ingest would see."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

#: Texts that stand for nothing in many data sets; ingest takes them for values.
_NOTHING = {"na", "n/a", "nan", "null", "none", "nil", r"\n", "undefined", "-"}


@dataclass(frozen=True, eq=False)
class Column:
    """A column: its name, and its values as texts, trimmed; None stands for none.

    ``is_time`` says that the data keeps times as such; the values are then ISO texts.
    """

    name: str
    values: list[str | None]
    is_time: bool = False

    @cached_property
    def filled(self) -> list[str]:
        """The values that are there."""
        return [value for value in self.values if value is not None]

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value is there."""
        return Counter(self.filled)

    @cached_property
    def numbers(self) -> list[float]:
        """The values that are numbers."""
        return [number for text in self.filled if (number := number_of(text)) is not None]

    @property
    def is_numeric(self) -> bool:
        """Whether nearly all values are numbers."""
        return bool(self.filled) and len(self.numbers) >= 0.95 * len(self.filled)

    @property
    def is_whole(self) -> bool:
        """Whether there is a whole number in every row."""
        return bool(self.values) and all(text and text.isdecimal() for text in self.values)

    @property
    def share(self) -> float:
        """The share of rows with a value that does not stand for nothing."""
        empty = sum(n for value, n in self.counts.items() if value.lower() in _NOTHING)
        return (len(self.filled) - empty) / max(len(self.values), 1)

    @property
    def mean_length(self) -> float:
        """Characters of a value."""
        return sum(map(len, self.filled)) / max(len(self.filled), 1)


@dataclass(frozen=True)
class Sample:
    """Some rows of raw data, and how it is written.

    Attributes
    ----------
    notes
        What was found, and why, a line each.
    bad
        Lines that are not in the encoding, or malformed.
    fields
        Names for the columns of a csv file without a header; None where its first line has them.
    nested
        Names of columns that hold lists or records, which are no ids, times or weights.
    """

    columns: list[Column]
    notes: list[str]
    bad: int = 0
    encoding: str = "utf-8"
    separator: str = ","
    quote: str = '"'
    fields: list[str] | None = None
    nested: Sequence[str] = ()

    @property
    def rows(self) -> int:
        """Rows of each column."""
        return len(self.columns[0].values) if self.columns else 0


def number_of(text: str) -> float | None:
    """Return the finite number that a text is; None if it is none."""
    # Python takes underscores within numbers, and words for infinity, which Spark does not.
    if not text[-1:].isdigit() and not text.endswith("."):
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def text_of(value: object) -> str | None:
    """Return a typed value as the text that ingest makes of it.

    Whole numbers lose their point, and NaN is no value.

    >>> text_of(5.0), text_of(True), text_of(" a "), text_of(float("nan"))
    ('5', 'true', 'a', None)
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2.0**53:
        return str(int(value))
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return str(value).strip() or None
