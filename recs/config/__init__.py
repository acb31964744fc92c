"""Typed models of conf/*.yaml: what to run, on which data, with which settings.

A file and ``key=value`` overrides become one :class:`Config`. An unknown key, a wrong type or a
missing path is refused here, before Spark starts.
"""

from recs.config.config import Config
from recs.config.errors import ConfigError
from recs.config.evaluation import Evaluate, Gate, Recommend, Sequentiality
from recs.config.loading import load_config
from recs.config.models import MODEL_NAMES, NETWORKS, Popularity, Slim, TunedNetwork, TuneSlim
from recs.config.preparation import Export, NegativeRule, Negatives, Sequences, Split
from recs.config.sources import (
    TIME_UNITS,
    CandidateSource,
    Delivery,
    EventColumns,
    Events,
    EventSource,
    EventType,
    Expect,
    ItemSource,
    Source,
    UserSource,
)

__all__ = [
    "MODEL_NAMES",
    "NETWORKS",
    "TIME_UNITS",
    "CandidateSource",
    "Config",
    "ConfigError",
    "Delivery",
    "Evaluate",
    "EventColumns",
    "EventSource",
    "EventType",
    "Expect",
    "Events",
    "Export",
    "Gate",
    "ItemSource",
    "NegativeRule",
    "Negatives",
    "Popularity",
    "Recommend",
    "Sequences",
    "Sequentiality",
    "Slim",
    "Source",
    "Split",
    "TuneSlim",
    "TunedNetwork",
    "UserSource",
    "load_config",
]
