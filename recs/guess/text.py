"""Text files as columns: which separator, quote, encoding and header they have."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence

from recs.guess import names
from recs.guess.columns import Column, Sample, number_of, text_of
from recs.guess.files import GuessError, RawFile, differ
from recs.guess.times import time_format


def read_jsonl(file: RawFile) -> Sample:
    """Return the columns of a file of JSON records.

    Raises
    ------
    GuessError
        If most lines are none.
    """
    lines, encoding, bad, notes = _decode(file.lines())
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    if len(records) <= len(lines) / 2:
        raise GuessError(
            f"{file.path} begins with {{, but most of its lines are no JSON: write one record a "
            "line, with double quotes"
        )
    columns, nested = [], []
    for key in dict.fromkeys(key for record in records for key in record):
        values = [record.get(key) for record in records]
        if any(isinstance(value, list | dict) for value in values):
            nested.append(key)
        else:
            columns.append(Column(key, [text_of(value) for value in values]))
    return Sample(columns, notes, bad + len(lines) - len(records), encoding, nested=nested)


def read_csv(file: RawFile, others: Sequence[RawFile]) -> Sample:
    """Return the columns of a csv file.

    Raises
    ------
    GuessError
        If no separator cuts its lines, it holds nothing but a header, or other files of the folder
        have another.
    """
    lines, encoding, bad, notes = _decode(file.lines())
    separator, quote = _separator(file, lines)
    split = [_split(line, separator, quote) for line in lines]
    number = Counter(map(len, split)).most_common(1)[0][0]
    rows = [row for row in split if len(row) == number]
    bad += len(split) - len(rows)
    notes.append(
        f"separator: {_SAID.get(separator, repr(separator))} "
        f"({number} columns in {len(rows):,} of {len(lines):,} lines)"
    )
    if len(rows) < len(split):
        notes.append(
            f"malformed: {len(split) - len(rows):,} lines with another number of columns (a quoted "
            "value cannot span lines)"
        )
    if quote != '"':
        notes.append(f"quote: {quote!r}" if quote else "quote: none, quotes are parts of values")
    why = _why_header(rows) if len(split[0]) == number else None
    if why and not file.first_line().strip():
        raise GuessError(f"{file.path}: the line before the header is empty: remove it")
    for other in others:
        text = other.first_line().decode(encoding, errors="replace").removeprefix("\ufeff")
        if text != lines[0] if why else len(_split(text, separator, quote)) != number:
            raise differ(file, other)
    if why:
        notes.append(f"header: the first line, {why}")
        found, rows = rows[0], rows[1:]
        if not rows:
            raise GuessError(f"{file.path} holds a header and no events")
    else:
        notes.append("no header: the first line has the same kinds of values as the others")
        found = [f"column_{n + 1}" for n in range(number)]
    repeated = {name for name, n in Counter(found).items() if n > 1 or not name}
    if repeated:
        notes.append("passed over: columns without a name, or with that of another")
    columns = [
        Column(name, [row[n] or None for row in rows])
        for n, name in enumerate(found)
        if name not in repeated
    ]
    fields = None if why else found
    return Sample(columns, notes, bad, encoding, separator, quote, fields)


def _decode(lines: list[bytes]) -> tuple[list[str], str, int, list[str]]:
    """Return lines as text, their encoding, how many are not in it, and what to say of it."""
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    decoded, others = [], 0
    for line in lines:
        try:
            decoded.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            others += 1
    utf8 = sum(not line.isascii() for line in decoded)
    if others > utf8:
        note = f"encoding: latin-1 ({others:,} lines are not UTF-8)"
        return [line.decode("latin-1") for line in lines], "latin-1", 0, [note]
    note = "encoding: utf-8" + (f" (but for {others:,} lines)" if others else "")
    return decoded, "utf-8", others, [note]


# -- separators -----------------------------------------------------------------------------------

#: Of equally good ones the first is taken; the space only where no other cuts all lines alike.
_SEPARATORS = ("\t", "::", ";", "|", ",", "\x01", " ")
_SAID = {"\t": "tab", " ": "space"}

#: Of equally good ones the first is taken; the empty one is for quotes that are parts of values.
_QUOTES = ('"', "", "'")

#: Share of the lines that a separator has to cut alike.
_MOST = 0.5

#: Lines that are tried with each separator.
_TRIED = 1000


def _separator(file: RawFile, lines: list[str]) -> tuple[str, str]:
    """Return the separator and the quote with which most lines have as many values as the first."""
    tried = lines[:_TRIED]
    best, chosen = (False, _MOST, 1), None
    for separator in _SEPARATORS:
        if chosen and separator == " ":
            break
        fits = {quote: _fit(tried, separator, quote) for quote in _QUOTES}
        # By how many lines fit: there are more values wherever quotes are taken for parts of them.
        quote = max(_QUOTES, key=lambda quote: fits[quote][:2])
        if fits[quote][2] > 1 and fits[quote] > best:
            best, chosen = fits[quote], (separator, quote)
    if chosen is None:
        raise GuessError(
            f"{file.path}: no separator ({', '.join(map(repr, _SEPARATORS))}) cuts its lines in as "
            "many values each: give csv, jsonl or Parquet with users and items in columns"
        )
    separator, quote = chosen
    return separator, "'" if _are_quoted(tried, separator, "'") else quote


def _fit(lines: list[str], separator: str, quote: str) -> tuple[bool, float, int]:
    """Return whether the first line is like most, the share of lines alike, and their values."""
    lengths = [len(_split(line, separator, quote)) for line in lines]
    number, alike = Counter(lengths).most_common(1)[0]
    # Rounded: a few malformed lines do not make another separator the better one.
    return lengths[0] == number, round(alike / len(lines), 1), number


def _are_quoted(lines: list[str], separator: str, quote: str) -> bool:
    """Tell whether all values of a column are in quotes of this kind."""
    rows = [line.split(separator) for line in lines]
    columns = zip(*rows, strict=False)
    return any(
        all(len(value) > 1 and value[0] == value[-1] == quote for value in column)
        for column in columns
    )


def _split(line: str, separator: str, quote: str) -> list[str]:
    """Return the values of a line, trimmed."""
    if not quote or quote not in line:
        values = line.split(separator)
    elif len(separator) > 1:
        values = [value.strip().strip(quote) for value in line.split(separator)]
    else:
        try:
            values = next(csv.reader([line], delimiter=separator, quotechar=quote))
        except csv.Error:  # a value longer than any column wants
            return []
    return [value.strip() for value in values]


# -- headers --------------------------------------------------------------------------------------

#: Lines that the first one is compared with.
_NEXT = 200

_NAME = re.compile(r"[^\W\d][\w .()-]{0,39}")


def _why_header(rows: list[list[str]]) -> str | None:
    """Return why the first row is one of names; None if it is none."""
    first = rows[0]
    if any(number_of(value) is not None or time_format([value]) for value in first):
        return None
    # A title or a category can be called as columns are; two of them hardly ever are.
    known = list(filter(names.is_known, first))
    if len(known) > 1:
        return f"which has names as {known[0]!r} and {known[1]!r}"
    others = [row for row in rows[1:_NEXT] if row != first]
    columns = list(zip(*others, strict=True))
    if any(value in column for value, column in zip(first, columns, strict=False)):
        return None
    if known:
        return f"which has names as {known[0]!r}"
    if any(_are_numbers(column) for column in columns):
        return "which has texts where the others have numbers"
    are_names = all(map(_NAME.fullmatch, first)) and len(set(first)) == len(first)
    return "as it seems: texts that occur nowhere else" if are_names else None


def _are_numbers(column: Sequence[str]) -> bool:
    values = [value for value in column if value]
    return bool(values) and all(number_of(value) is not None for value in values)
