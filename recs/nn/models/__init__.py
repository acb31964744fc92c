"""All sequential networks, by name.

Adding one: a file with a :class:`~recs.nn.network.SequenceNetwork` and a line in :data:`MODELS`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

if TYPE_CHECKING:
    # The names of networks are known where torch is not installed.
    from recs.nn.network import SequenceNetwork, Settings, Sizes

#: Where each network is, as ``module:class``; a module is imported when it is asked for.
MODELS: dict[str, str] = {
    "sasrec": "recs.nn.models.attention:SASRec",
    "bert4rec": "recs.nn.models.attention:BERT4Rec",
    "gru4rec": "recs.nn.models.recurrent:GRU4Rec",
    "lstm": "recs.nn.models.recurrent:LSTMRec",
    "rnn": "recs.nn.models.recurrent:RNNRec",
    "caser": "recs.nn.models.convolution:Caser",
    "fmc": "recs.nn.models.markov:FMC",
    "fpmc": "recs.nn.models.markov:FPMC",
    "transrec": "recs.nn.models.markov:TransRec",
}


def model_class(name: str) -> type[SequenceNetwork]:
    """Return the class of a network.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}{_nearest(name, MODELS)}")
    module, _, attribute = MODELS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def build(name: str, sizes: Sizes, settings: Mapping[str, Any]) -> SequenceNetwork:
    """Return a network with fresh weights, drawn by torch's global generator.

    Parameters
    ----------
    name
        A key of :data:`MODELS`.
    sizes
        Of the data.
    settings
        What differs from the defaults of the class's ``Settings``.

    Raises
    ------
    ValueError
        If there is no such model or setting, or a setting's value cannot be.

    >>> from recs.nn.network import Sizes
    >>> sizes = Sizes(num_users=2, num_items=3, num_event_types=1, length=4)
    >>> build("fmc", sizes, {"dims": 8})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: fmc has no setting 'dims'; did you mean 'dim'? There are dim, ...
    """
    return model_class(name)(sizes, read_settings(name, settings))


def read_settings(name: str, settings: Mapping[str, Any]) -> Settings:
    """Return the settings of a network, those that are not given at their defaults.

    Raises
    ------
    ValueError
        As :func:`build`.
    """
    network = model_class(name)
    try:
        return network.Settings.model_validate(dict(settings))
    except ValidationError as error:
        raise ValueError("; ".join(_reasons(name, network, error))) from None


def _reasons(name: str, network: type[SequenceNetwork], error: ValidationError) -> list[str]:
    known = network.Settings.model_fields
    reasons = []
    for part in error.errors():
        key = ".".join(map(str, part["loc"]))
        if part["type"] == "extra_forbidden":
            reasons.append(f"{name} has no setting {key!r}{_nearest(key, known)}")
        else:
            where = f"{name}.{key}" if key else name
            reasons.append(f"{where}: {part['msg'].removeprefix('Value error, ')}")
    return reasons


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"; {guess}There are {', '.join(known)}"
