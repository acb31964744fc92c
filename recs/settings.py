"""The base of all settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, LiteralString, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class Strict(BaseModel):
    """Settings that refuse unknown keys, take no truth value for a number, and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _tells_truth_values_from_others(cls, values: Any) -> Any:
        """Refuse ``true`` for a number and ``no`` for a truth value, which pydantic would take."""
        if not isinstance(values, dict):
            return values
        # Not a validator of fields: those by which unions are told apart may have none.
        problems: list[InitErrorDetails] = []
        for key, field in cls.model_fields.items():
            need = _need(field.annotation, values[key]) if key in values else None
            if need is not None:
                error = PydanticCustomError("truth_value", need)
                problems.append(InitErrorDetails(type=error, loc=(key,), input=values[key]))
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return values


def _need(kind: Any, value: Any) -> LiteralString | None:
    """Return what is needed where a value of a kind is or is no truth value, None where it fits."""
    kinds = list(_single_kinds(kind))
    is_truth = [isinstance(one, bool) for one in _single_values(value)]
    if any(is_truth) and bool not in kinds and (int in kinds or float in kinds):
        return "a number is needed"
    if all(kind in (bool, NoneType) for kind in kinds) and not (value is None or all(is_truth)):
        return "true or false is needed"
    return None


def alternatives(kind: Any) -> list[Any]:
    """Return the types of a union, or the one that it is, without annotations.

    >>> alternatives(Annotated[int, "more than 0"] | None)
    [<class 'int'>, <class 'NoneType'>]
    """
    if get_origin(kind) is Annotated:
        return alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [other for part in get_args(kind) for other in alternatives(part)]
    return [kind]


def _single_kinds(kind: Any) -> Iterator[Any]:
    """Return the types of a value, or of those in a list of them."""
    for other in alternatives(kind):
        if get_origin(other) in (list, tuple):
            for part in get_args(other):
                yield from _single_kinds(part)
        else:
            yield other


def _single_values(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _single_values(part)
    else:
        yield value


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
