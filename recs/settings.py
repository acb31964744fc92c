"""The base of all settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Settings that refuse unknown keys and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def leaves(
    tree: Mapping[Any, Any],
    whole: Callable[[Mapping[Any, Any]], bool] = lambda value: False,
    above: str = "",
) -> Iterator[tuple[str, Any]]:
    """Return the values of nested mappings by their dotted keys; ``whole`` ones are values.

    >>> dict(leaves({"a": {"b": 1}, "c.d": 2}))
    {'a.b': 1, 'c.d': 2}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping) and not whole(value):
            yield from leaves(value, whole, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
