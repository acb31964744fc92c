"""The space of a network's settings that is searched, as declared; no torch, no Optuna."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from recs.settings import Strict, leaves
from recs.training.settings import Network

#: A value of a setting.
Value = bool | int | float | str | None
#: Trials are compared by these, so that they are the same in all.
_COMPARED_BY = ("training.validation.metric", "training.validation.k")

_Number = int | Annotated[float, Field(allow_inf_nan=False)]


class Range(Strict):
    """Numbers from ``low`` to ``high``, both included; whole ones if both are (1, not 1.0).

    Attributes
    ----------
    log
        Draw evenly over the logarithm, as for a learning rate.
    """

    low: _Number
    high: _Number
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}: exchange them")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithm needs low above 0, not {self.low}: raise it")
        return self


def _kind(parameter: Any) -> str | None:
    if isinstance(parameter, list):
        return "values"
    return "range" if isinstance(parameter, (dict, Range)) else None


#: What is searched of one setting: a list of values, or a range.
Parameter = Annotated[
    Annotated[list[Value], Field(min_length=1), Tag("values")] | Annotated[Range, Tag("range")],
    Discriminator(
        _kind,
        custom_error_type="parameter",
        custom_error_message="give a list of values, or a range as {low: 0.1, high: 0.5}",
    ),
]


class Tune(Strict):
    """What ``recs tune`` searches.

    Attributes
    ----------
    trials
        Trainings.
    space
        Setting → values, by the setting's dotted key below the network: ``model.dim``,
        ``loss.sampler.negatives``, ``training.optimizer.rate``. Settings that it does not name are
        the network's own.
    """

    trials: PositiveInt = 20
    space: dict[str, Parameter] = Field(min_length=1)

    @field_validator("space", mode="before")
    @classmethod
    def _with_dotted_keys(cls, space: Any) -> Any:
        """Take nested keys as dotted ones: an override ``tune.space.model.dim=[8]`` nests them."""
        if not isinstance(space, dict):
            return space
        return dict(leaves(space, lambda value: bool({"low", "high"} & value.keys())))

    @model_validator(mode="after")
    def _names_settings_of_networks(self) -> Tune:
        for key in self.space:
            part, dot, _ = key.partition(".")
            if part not in Network.model_fields or not dot:
                parts = ", ".join(f"{name}." for name in Network.model_fields)
                raise ValueError(f"{key!r} is no setting of a network: keys begin with {parts}")
            if key in _COMPARED_BY:
                raise ValueError(f"trials are compared by {key}: take it out of the space")
        return self


def with_settings(network: Network, settings: Mapping[str, Value]) -> Network:
    """Return a network with other values of some settings, by their dotted keys.

    Raises
    ------
    ValueError
        If ``training`` has no such setting, or a value cannot be. What a model and a loss take is
        not known here.

    >>> with_settings(Network(model={"dim": 64}), {"model.dim": 32, "loss.name": "bce"}).model
    {'dim': 32}
    """
    values = network.model_dump()
    for key, value in settings.items():
        *parents, last = key.split(".")
        node: Any = values
        for parent in parents:
            _check_part(node, parent, key)
            node = node.setdefault(parent, {})
        _check_part(node, last, key)
        node[last] = value
    try:
        return Network.model_validate(values)
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError("; ".join(reasons)) from None


def _check_part(node: Any, part: str, key: str) -> None:
    """Refuse a key of which ``part`` is not in ``node``."""
    if not isinstance(node, dict):
        raise ValueError(f"{key}: there are no settings below {node!r}; shorten the key")
    # All settings of training have a value, those of models and losses only where they are given.
    if key.startswith("training.") and part not in node:
        near = difflib.get_close_matches(part, node, n=1, cutoff=0.0)
        raise ValueError(f"{key}: there is no setting {part!r}; the nearest is {near[0]!r}")
