"""What kind of value a key holds, by the types of the settings."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from recs.settings import alternatives


def below(kind: Any, key: int | str) -> Any:
    """Return the kind of what a key, or the place in a list, holds.

    What has no such key is of its own kind further down: keys of Spark hold dots.
    """
    for other in alternatives(kind):
        if _is_model(other) and key in other.model_fields:
            return other.model_fields[key].annotation
        if get_origin(other) is dict:
            return get_args(other)[1]
        if get_origin(other) in (list, tuple) and str(key).isdigit():
            return get_args(other)[0]
    return kind


def is_text(kind: Any) -> bool:
    """Tell whether whatever is no list and no mapping is a text."""
    scalars = [
        scalar
        for other in alternatives(kind)
        if not _is_model(other) and get_origin(other) not in (list, tuple, dict)
        for scalar in get_args(other) or (other,)  # of a Literal its texts
    ]
    texts = [scalar for scalar in scalars if scalar is not NoneType]
    return bool(texts) and all(text is str or isinstance(text, str) for text in texts)


def may_be_none(kind: Any) -> bool:
    """Tell whether there may be no value."""
    return NoneType in alternatives(kind)


def keys_of(kind: Any) -> list[str]:
    """Return the known keys of a section, or of the sections that a list or mapping holds."""
    found: list[str] = []
    for other in alternatives(kind):
        if _is_model(other):
            found += other.model_fields
        elif get_origin(other) in (list, tuple, dict):
            found += keys_of(get_args(other)[-1])
    return found


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
