"""Kinds of single values that several sections hold."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field


def one_of(names: Collection[str], what: str) -> AfterValidator:
    """Return what refuses every name but these, and tells the nearest."""

    def check(name: str) -> str:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise ValueError(
                f"no {what} is called {name!r}; the nearest is {near[0]!r}, all are "
                f"{', '.join(names)}"
            )
        return name

    return AfterValidator(check)


def _different(values: list[Any]) -> list[Any]:
    """Refuse a value given twice: what it stands for would be made and counted twice."""
    repeated = next((value for n, value in enumerate(values) if value in values[:n]), None)
    if repeated is not None:
        raise ValueError(f"{repeated!r} is given twice: name it once")
    return values


#: Of lists each entry of which is fitted or measured.
Different = AfterValidator(_different)


def _utc(moment: datetime) -> datetime:
    """Return a time without zone, which is UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


#: A time in UTC; given with a zone it is converted.
Moment = Annotated[datetime, AfterValidator(_utc)]
#: Between values; a tab may be written as Spark takes it, as ``\\t``.
Separator = Annotated[str, AfterValidator(lambda text: text.replace("\\t", "\t"))]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
