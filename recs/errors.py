"""Errors that a user can cause, and any error told in one line.

This module imports nothing of recs, Spark or torch: what Spark raises is read as text, in which a
cause that lies in another process or language is written out too.
"""

from __future__ import annotations

import importlib
import re
from typing import NamedTuple


class UserError(Exception):
    """A mistake in configuration, data, lake or machine; the message names it and says the mend.

    Attributes
    ----------
    exit_code
        What the command line ends with.
    """

    exit_code = 2


class Told(NamedTuple):
    """An error as the command line tells it."""

    message: str
    exit_code: int
    #: Whether the message says it all, so that the traceback is only for who asks for it.
    whole: bool


def tell(error: BaseException) -> Told:
    """Return an error in one line, and the exit code: 2 where it is a user's, else 1.

    Of an error of Spark the line is the innermost cause that says something, after the file it is
    about: without plan, stack, SQLSTATE, or values of rows. An error raised in a Python worker
    counts as if it were raised here.
    """
    if isinstance(error, UserError):
        return Told(str(error), error.exit_code, whole=True)
    if isinstance(error, OSError):
        return _of_machine(error)
    if type(error).__module__.startswith(("pyspark.", "py4j.")):
        return _of_spark(error)
    return Told(_named(error), 1, whole=False)


def _named(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name


def _of_machine(error: OSError) -> Told:
    """Tell what the machine refuses: a file that is not there or not allowed, a full disk."""
    code = 1 if isinstance(error, ConnectionError | TimeoutError) else UserError.exit_code
    named = f"{error.filename}: {error.strerror}" if error.filename else _named(error)
    return Told(named, code, whole=True)


class _Cause(NamedTuple):
    """One exception of a stack trace, Java's or Python's."""

    name: str
    lines: list[str]
    python: bool

    @property
    def short(self) -> str:
        return re.split(r"[.$]", self.name)[-1]

    @property
    def condition(self) -> str:
        """Spark's name of what has happened, as PATH_NOT_FOUND; of others an empty text."""
        found = re.match(r"\[([A-Z][A-Z0-9_.]+)\]", self.lines[0])
        return found[1] if found and not self.python else ""


#: Conditions that only say where something else has happened.
_AROUND = (
    "FAILED_READ_FILE.NO_HINT",
    "FAILED_READ_FILE.CANNOT_READ_FILE_FOOTER",
    "TASK_WRITE_FAILED",
    "STREAM_FAILED",
    "FOREACH_BATCH_USER_FUNCTION_ERROR",
    "INTERNAL_ERROR",
    "FAILED_EXECUTE_UDF",
)
#: Beginnings of conditions for which data or configuration are to blame ...
_OF_USERS = (
    "FAILED_READ_FILE",
    "PATH_",
    "DELTA_",
    "PARQUET_",
    "CANNOT_MERGE",
    "UNABLE_TO_INFER_SCHEMA",
    "MALFORMED_",
    "INCONSISTENT_BEHAVIOR_CROSS_VERSION",
)
#: ... but for rows that recs itself should not have written.
_OF_RECS = ("DELTA_VIOLATE", "DELTA_NOT_NULL", "DELTA_EXCEED_CHAR")
#: Causes in words of the inside, and what they mean.
_MEANINGS = (
    (r"Relative path in absolute URI", "Hadoop reads no name with a colon: rename it"),
    (r"not a gzip file", "not a gzip file, which its name says it is: rename it"),
)
_JVM_GONE = "Spark's JVM does not answer: it was ended, or has run out of memory"


def _of_spark(error: BaseException) -> Told:
    if type(error).__name__ == "Py4JNetworkError":
        return Told(_JVM_GONE, 1, whole=True)
    text = getattr(error, "_stackTrace", None) or str(error)
    causes = _causes(text) or [_Cause(type(error).__name__, [str(error)], python=False)]
    cause = _chosen(causes)
    if cause.python:
        kind = _own(cause.name)
        message = " ".join("\n".join(cause.lines).split())
        if kind is not None:
            return Told(message, kind.exit_code, whole=True)
        return Told(f"{cause.short}: {message}" if message else cause.short, 1, whole=True)
    line = _first_line(cause)
    meaning = next((mend for sign, mend in _MEANINGS if re.search(sign, line)), None)
    message = meaning or (line if cause.condition else f"{cause.short}: {line}".rstrip(": "))
    file = _file(causes)
    if file and file.rpartition("/")[2] not in message:
        message = f"{file}: {message}"
    return Told(message, UserError.exit_code if _is_users(causes, cause) else 1, whole=True)


def _causes(text: str) -> list[_Cause]:
    """Return the exceptions of a stack trace, outermost first; Python's final one of a chain."""
    causes: list[_Cause] = []
    open_ = frames = False  # inside a message; inside a Python traceback
    for line in text.splitlines():
        if line.startswith("\t"):
            open_ = False
            continue
        java = re.match(r"(?:Caused by: |: )?((?:[a-z]\w*\.)+[A-Z][\w$]*)(?:: (.*))?$", line)
        if "Traceback (most recent call last):" in line:
            open_, frames = False, True
        elif frames and line[:1] not in ("", " "):
            name, _, message = line.partition(": ")
            causes.append(_Cause(name, [message], python=True))
            open_, frames = True, False
        elif java and not frames:
            causes.append(_Cause(java[1], [java[2] or ""], python=False))
            open_ = True
        elif not line.strip():
            open_ = open_ and not causes[-1].python
        elif open_ and causes:
            causes[-1].lines.append(line)
    return causes


def _chosen(causes: list[_Cause]) -> _Cause:
    """Return the innermost cause of those that say most."""
    for cause in reversed(causes):
        if cause.python and not cause.short.startswith("Py4J"):
            return cause
        if cause.condition and cause.condition not in _AROUND:
            return cause
    return next((cause for cause in reversed(causes) if cause.lines[0]), causes[-1])


def _own(name: str) -> type[UserError] | None:
    """Return the class of a users' error by its full name."""
    module, _, short = name.rpartition(".")
    if module.split(".")[0] not in ("recs", "pipelines"):
        return None
    kind = getattr(importlib.import_module(module), short, None)
    return kind if isinstance(kind, type) and issubclass(kind, UserError) else None


def _first_line(cause: _Cause) -> str:
    """Return the first line of a message, without what is for Spark's developers."""
    first, *others = cause.lines
    line = f"{first} {others[0].strip()}" if first.endswith(":") and others else first
    # A failed stage begins with where its last task has run.
    line = re.sub(r"^Job aborted due to stage failure: .*?\(TID \d+\) \([^)]*\): ", "", line)
    line = re.sub(r"\s*SQLSTATE: \w+.*", "", line)
    line = re.sub(r"\s*(Did you mean one of the following|Verify the spelling).*", "", line)
    # Values of rows, which may be users' ids.
    line = re.sub(r" by row with values:.*", "", line)
    line = re.sub(r"The value '.*' of the type", "A value of the type", line)
    return " ".join(line.split())


def _file(causes: list[_Cause]) -> str:
    """Return the file that could not be read, as a path where it lies on this machine."""
    for cause in reversed(causes):
        found = re.search(r"while reading file (.+?)\.(?:\s|$)", cause.lines[0])
        if found:
            return re.sub(r"^file:/+", "/", found[1])
    return ""


def _is_users(causes: list[_Cause], chosen: _Cause) -> bool:
    conditions = [cause.condition for cause in causes]
    if any(condition.startswith(_OF_RECS) for condition in conditions):
        return False
    return (
        any(condition.startswith(_OF_USERS) for condition in conditions)
        or chosen.short.endswith(("AnalysisException", "ParseException"))
        or chosen.short in ("FileNotFoundException", "AccessControlException")
    )
