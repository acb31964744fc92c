"""What validation refuses, in words of the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import reduce
from typing import Any

from pydantic import ValidationError

from recs.config.config import Config
from recs.config.kinds import below, keys_of
from recs.storage import redact, redact_text


def explain(file: str, error: ValidationError) -> str:
    """Return what is wrong with the configuration of a file: keys, values, and mends."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = keys_of(reduce(below, problem["loc"][:-1], Config))
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.0)
            lines.append(f"unknown key {where!r}; the nearest known key is {near[0]!r}")
        else:
            key = f"key {where!r}: " if where else ""
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{key}{message}{_given(problem)}")
    return redact_text(f"config {file}: " + "; ".join(lines))


def _given(problem: Any) -> str:
    """Return the value at fault; not a section of values, and no setting of Spark.

    Either could hold a credential.
    """
    value = problem["input"]
    hidden = isinstance(value, Mapping) or problem["loc"][:1] in ((), ("spark",))
    value = redact(value.strip()) if isinstance(value, str) else value
    return "" if hidden or problem["type"] == "missing" else f" (given: {value!r})"
