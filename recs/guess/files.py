"""The first bytes of raw files, and some of their middle, on whatever storage."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import IO, Literal

from fsspec import AbstractFileSystem

from recs.errors import UserError
from recs.storage import absolute, check_uri, filesystem, is_hidden, join, redact

#: Bytes that are read of a file, unpacked, at its beginning and in its middle.
HEAD, MIDDLE = 1 << 20, 1 << 18

#: Files of a folder that are compared with the one that is read.
_COMPARED = 8

Kind = Literal["csv", "jsonl", "parquet"]


class GuessError(UserError):
    """Raw data of which no configuration can be guessed, with what would help."""


@dataclass(frozen=True)
class Raw:
    """A file, or a folder of files, of raw events.

    Attributes
    ----------
    data, path
        The folder that it lies in, and its name there.
    is_delta
        Whether the folder is a Delta table.
    files
        The file that is looked at, and some others.
    """

    data: str
    path: str
    is_delta: bool
    files: list[RawFile]


@dataclass(frozen=True)
class RawFile:
    """A file, with the columns that folders named ``column=value`` give it."""

    fs: AbstractFileSystem
    path: str
    partitions: dict[str, str]

    @property
    def packing(self) -> str | None:
        """How the file is packed, as its name says and Spark unpacks it."""
        return {"gz": "gzip", "bz2": "bz2"}.get(self.path.rpartition(".")[2])

    def open(self) -> IO[bytes]:
        """Open the file, unpacked where its name says that it is packed."""
        file: IO[bytes] = self.fs.open(self.path, "rb", compression=self.packing)
        return file

    def head(self, size: int) -> bytes:
        """Return the first bytes.

        Raises
        ------
        GuessError
            If the file is not packed as its name says.
        """
        try:
            with self.open() as file:
                return file.read(size)
        except (EOFError, OSError, zlib.error) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise GuessError(
                f"{self.path} cannot be unpacked ({error}): it is broken, or its name does not say "
                "how it is packed"
            ) from error

    def kind(self) -> Kind:
        """Return the format of the file, by its first bytes.

        Raises
        ------
        GuessError
            If it is empty, packed, binary or one JSON document.
        """
        head = self.head(1024)
        if head.startswith(b"PAR1"):
            return "parquet"
        for sign, what in _SIGNS:
            if re.search(sign, head):
                raise GuessError(f"{self.path} {what}")
        start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start:
            raise GuessError(f"{self.path} holds nothing: name a file with events")
        if re.match(rb"\[\s*(\{|\[|\]|$)", start):
            raise GuessError(
                f"{self.path} is one JSON document: write one record a line, as jq -c '.[]' does"
            )
        return "jsonl" if re.match(rb"\{\s*([\"'}]|$)", start) else "csv"

    def first_line(self) -> bytes:
        """Return the first line, as far as it is not far too long."""
        return self.head(1 << 16).splitlines()[0]

    def lines(self) -> list[bytes]:
        """Return the first lines, and some of the middle where it can be reached.

        Raises
        ------
        GuessError
            If no line ends in the bytes read.
        """
        head = self.head(HEAD + 1)
        lines = head.splitlines()
        if len(head) > HEAD:
            lines = lines[:-1]  # of which the end is missing
            lines += self._middle()
        if not lines:
            raise GuessError(f"{self.path}: no line ends in its first {HEAD >> 20} MiB")
        return [line for line in lines if line.strip()]

    def _middle(self) -> list[bytes]:
        start = 0 if self.packing else self.fs.size(self.path) // 2
        if start <= HEAD:  # or nobody knows where the middle of a packed file is
            return []
        with self.fs.open(self.path, "rb") as file:
            file.seek(start)
            return file.read(MIDDLE).splitlines()[1:-1]


#: What the first bytes of files that are neither text nor Parquet hold, and what to say of them.
_SIGNS = [
    (rb"^PK\x03\x04", "is a zip file (as xlsx is): unpack it, or save it as csv"),
    (rb"^(\x1f\x8b|BZh)", "is packed, which its name does not say: let it end in .gz or .bz2"),
    (rb"^(\xff\xfe|\xfe\xff)|\0", "is UTF-16 or binary: save it as UTF-8"),
    # A separator of Hive's is no sign of it.
    (rb"[\x02-\x08\x0e-\x1a\x1c-\x1f]", "is binary: give csv, jsonl or Parquet"),
]


def find(path: str) -> Raw:
    """Return what is at a path.

    Raises
    ------
    GuessError
        If there is nothing that recs would read.
    """
    path = check_uri(absolute(path)).rstrip("/")
    fs, inside = filesystem(path)
    data, _, name = path.rpartition("/")
    if not fs.exists(inside):
        raise GuessError(f"{redact(path)} does not exist")
    if is_hidden(name) or ":" in name:
        raise GuessError(
            f"{redact(path)}: Spark reads no name that begins with _ or . or holds a colon: rename "
            "it"
        )
    if not fs.isdir(inside):
        return Raw(data or "/", name, False, [RawFile(fs, inside, {})])
    files = []
    for found, details in sorted(fs.find(inside, detail=True).items()):
        below = found.removeprefix(inside).strip("/").split("/")
        if details["size"] and not any(map(is_hidden, below)):
            pairs = [folder.split("=", 1) for folder in below[:-1] if "=" in folder]
            files.append(RawFile(fs, found, {column: value for column, value in pairs}))
    if not files:
        raise GuessError(
            f"{redact(path)} holds no files (but empty ones, or such whose names begin with _ or .)"
        )
    is_delta = fs.exists(join(inside, "_delta_log"))
    return Raw(data or "/", name, is_delta, files[: _COMPARED + 1])


def require_one_kind(raw: Raw) -> Kind:
    """Return the format of all files.

    Raises
    ------
    GuessError
        If some are of another.
    """
    first, *others = raw.files
    kind = first.kind()
    for other in others:
        if other.kind() != kind:
            raise differ(first, other)
    return kind


def differ(first: RawFile, other: RawFile) -> GuessError:
    """Return the error of a folder whose files are of more than one kind."""
    return GuessError(
        f"{first.path} and {other.path} are not of one form: name the one that holds events, or "
        "put what belongs together in a folder of its own"
    )
