"""What validation refuses, in words of the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from recs.config.config import Config
from recs.storage import redact, redact_text


def explain(path: Path, error: ValidationError) -> str:
    """Return what is wrong with the configuration of a file: keys, values, and mends."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.0)
            lines.append(f"unknown key {where!r}; the nearest known key is {near[0]!r}")
        else:
            key = f"key {where!r}: " if where else ""
            mend = ": put it in quotes" if problem["type"] == "string_type" else ""
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{key}{message}{_given(problem)}{mend}")
    return redact_text(f"config {path}: " + "; ".join(lines))


def _given(problem: Any) -> str:
    """Return the value at fault; not a section of values, and no setting of Spark.

    Either could hold a credential.
    """
    value = problem["input"]
    hidden = isinstance(value, Mapping) or problem["loc"][:1] in ((), ("spark",))
    value = redact(value.strip()) if isinstance(value, str) else value
    return "" if hidden or problem["type"] == "missing" else f" (given: {value!r})"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the model at a location of the configuration."""
    model: Any = Config
    for part in location:
        if isinstance(part, int) or not hasattr(model, "model_fields"):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else model
        model = _model_in(annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model), None)
