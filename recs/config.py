"""Typed models of conf/*.yaml: what to run, on which data, with which settings.

A file and ``key=value`` overrides become one :class:`Config`. An unknown key, a wrong type or a
missing path is refused here, before Spark starts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from recs.errors import UserError
from recs.nn.models import MODELS
from recs.schema import (
    MAX_TYPE_WEIGHT,
    METRICS_OF_LISTS,
    METRICS_OF_RANKS,
    METRICS_WITHOUT_K,
)
from recs.settings import Strict, leaves
from recs.storage import (
    StorageError,
    check_uri,
    has_scheme,
    join,
    may_exist,
    redact,
    redact_text,
)
from recs.training.settings import Network, Processes
from recs.training.space import Tune

#: Networks, and all models: those solved in Spark come first.
NETWORKS: tuple[str, ...] = tuple(MODELS)
MODEL_NAMES: tuple[str, ...] = ("popularity", "slim", *NETWORKS)
#: A schema, or a catalog and a schema.
_CATALOG = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")


class ConfigError(UserError):
    """A configuration that cannot run, with the key at fault and the mend."""


def _one_of(names: Collection[str], what: str) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise ValueError(
                f"no {what} is called {name!r}; the nearest is {near[0]!r}, all are "
                f"{', '.join(names)}"
            )
        return name

    return AfterValidator(check)


ModelName = Annotated[str, _one_of(MODEL_NAMES, "model")]
NetworkName = Annotated[str, _one_of(NETWORKS, "network")]

MetricName = Annotated[
    str, _one_of((*METRICS_OF_RANKS, *METRICS_OF_LISTS, *METRICS_WITHOUT_K), "metric")
]


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


class Delivery(Strict):
    """Where something to read lies.

    Attributes
    ----------
    path
        One path, or several of which the first that exists is read; relative paths are looked up
        in the data folder, with and without ``.gz``. A folder is read whole, with its subfolders.
    """

    path: str | list[str]

    @property
    def paths(self) -> list[str]:
        """The alternatives of ``path``."""
        return [self.path] if isinstance(self.path, str) else self.path


class Source(Delivery):
    """Files or a table to read.

    Attributes
    ----------
    format
        ``csv`` (any separator), ``jsonl``, ``parquet`` or ``delta``.
    quote
        Around values of a csv file that hold separators; doubled, it stands for itself.
    fields
        Names of the columns of a csv file, in order; None takes them from its first line.
    changes
        Of a Delta table, from which only added rows are read: whether commits that change or delete
        rows are refused, or passed over (``skip``).
    """

    format: Literal["csv", "jsonl", "parquet", "delta"] = "csv"
    separator: Separator = ","
    quote: str = '"'
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    fields: list[str] | None = None
    changes: Literal["refuse", "skip"] = "refuse"


#: Letters of Spark's datetime patterns; others are none of them, or for printing alone.
_PATTERN_LETTERS = set("GyMLdEaFDQqHhKkmsSVzOXxZ")

#: Numbers since 1970.
TIME_UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")


def _time_format(form: str) -> str:
    unquoted = re.sub(r"'[^']*'", "", form)
    wrong = [c for c in unquoted if (c.isalpha() and c not in _PATTERN_LETTERS) or c in "%{}#"]
    if form not in ("iso", *TIME_UNITS) and (wrong or not any(c.isalpha() for c in unquoted)):
        said = f" ({wrong[0]!r} is no letter of one)" if wrong else ""
        raise ValueError(
            f"is none of iso, {', '.join(TIME_UNITS)}, and no datetime pattern of Spark{said}, as "
            "dd/MM/yyyy HH:mm:ss is"
        )
    return form


class EventColumns(Strict):
    """Which column of the data plays which role.

    ``timestamp`` has no default: data without times says so with ``timestamp: null``. ``position``,
    a whole number, orders events of one time, or all of them where there are no times; what ties
    are left, lines of files break.
    """

    user: str
    item: str
    timestamp: str | None
    position: str | None = None
    event_type: str | None = None
    weight: str | None = None
    context: list[str] = []


class EventSource(Source):
    """Event files; ``held_out`` names the split that the data set's own files give them.

    ``timestamp_format`` is of texts and numbers: ``iso`` (a date, with or without a time of day),
    ``seconds``, ``milliseconds``, ``microseconds`` or ``nanoseconds`` since 1970, or a datetime
    pattern of Spark. Times that Parquet and Delta keep as such are taken as they are.
    """

    columns: EventColumns
    timestamp_format: Annotated[str, AfterValidator(_time_format)] = "iso"
    held_out: Literal["train", "validation", "test"] | None = None

    @property
    def has_unit(self) -> bool:
        """Whether it is known of what unit numbers are that stand for times."""
        return self.timestamp_format in TIME_UNITS

    @model_validator(mode="after")
    def _order_is_known(self) -> EventSource:
        ordered = self.columns.timestamp or self.columns.position
        if self.format == "delta" and not ordered:
            raise ValueError(
                "a Delta table keeps no order of rows: give columns.timestamp or columns.position"
            )
        return self


class EventType(Strict):
    """A kind of event: what it weighs, and what it says of the user and the item.

    ``positive``: wanted; ``negative``: not wanted, never recommended again; ``shown``: put
    before the user, who may not take it: neither a positive nor seen, but it can be a negative.
    """

    weight: Annotated[NonNegative, Field(le=MAX_TYPE_WEIGHT)] = 1.0
    polarity: Literal["positive", "negative", "shown"] = "positive"


class Events(Strict):
    """What is delivered, and what is accepted of it."""

    sources: list[EventSource] = Field(min_length=1)
    types: dict[str, EventType] = {"view": EventType()}
    default_type: str = "view"
    floor: Moment = datetime(1990, 1, 1)
    allowed_skew_hours: NonNegative = 24.0
    max_reject_share: Share = 0.1

    @property
    def shown(self) -> list[str]:
        """Types of polarity ``shown``."""
        return [name for name, kind in self.types.items() if kind.polarity == "shown"]

    @model_validator(mode="after")
    def _default_type_is_known(self) -> Events:
        if self.default_type not in self.types:
            raise ValueError(
                f"default_type {self.default_type!r} is none of types {list(self.types)}"
            )
        return self


class CandidateSource(Delivery):
    """Candidate lists in NCF's form: ``(user,item)`` and its candidates, tab separated."""

    format: Literal["ncf"] = "ncf"
    encoding: Literal["utf-8", "latin-1"] = "utf-8"


class ItemSource(Source):
    """What is known of items. ``category_flags`` are 0/1 columns named by their category."""

    item: str
    title: str | None = None
    categories: str | None = None
    category_separator: Separator = "|"
    category_flags: list[str] = []
    text: str | None = None
    attributes: list[str] = []


class UserSource(Source):
    """What is known of users."""

    user: str
    attributes: list[str] = []


class Split(Strict):
    """How events become training, validation and test.

    Attributes
    ----------
    method
        ``leave_one_out``: a user's last positive event is the test, the one before the validation;
        ``global_time``: events from ``validation_from`` and ``test_from`` on;
        ``random``: ``held_out_per_user`` seeded random positives a user and split, for data without
        order; ``files``: as the event sources say by ``held_out``, with ``held_out_per_user``
        seeded random training positives as validation where no file gives one.
    min_user_events, min_item_events
        The k-core: users and items with fewer positive events are left out, until none is left.
    max_user_events
        Users with more events than this (bots): ``latest`` keeps their last so many, ``drop``
        leaves the users out. The events themselves stay in ``events``.
    repeats
        ``keep`` every event, or ``merge`` a user's events of an item into the last of them, with
        the sum of their weights.
    recommendable
        Items that may be recommended, and from which negatives are drawn: ``train`` (those with a
        positive training event) or ``all``.
    """

    method: Literal["leave_one_out", "global_time", "random", "files"] = "leave_one_out"
    validation_from: Moment | None = None
    test_from: Moment | None = None
    held_out_per_user: PositiveInt = 1
    min_user_events: PositiveInt = 1
    min_item_events: PositiveInt = 1
    max_user_events: PositiveInt | None = None
    over_cap: Literal["latest", "drop"] = "latest"
    repeats: Literal["keep", "merge"] = "keep"
    recommendable: Literal["train", "all"] = "train"

    @model_validator(mode="after")
    def _times_are_given(self) -> Split:
        if self.method != "global_time":
            return self
        if not (self.validation_from and self.test_from):
            raise ValueError("method global_time needs validation_from and test_from")
        if self.validation_from >= self.test_from:
            raise ValueError(
                f"validation_from {self.validation_from} is not before test_from {self.test_from}: "
                "exchange them"
            )
        return self


class Slim(Strict):
    """SLIM's objective, how exactly it is solved, and in which memory.

    Attributes
    ----------
    l1, l2
        λ and β of the objective in :mod:`recs.slim.solver`, without a 1/n.
    values
        Whether an item is in a history (``binary``), or the summed weights of its events.
    tolerance
        Largest KKT residual of an item, relative to its largest co-occurrence.
    max_iterations
        Passes over an item's working set after which it has not converged.
    memory_budget_mb
        MiB that the Python workers of a host may hold together, beside their interpreters and the
        weights of a warm start: the events by item and by user, 8 (U + 3 N) bytes and 8 a distinct
        event (16 with weights), about 28 U + 44 N bytes a worker, and with the rest a table of
        the co-occurrences of the most popular items, which makes it fast.
    max_neighbours
        K: only the K most similar of the items that could have a weight (G_ij > l1) may have one.
        Events that do not fit the memory of a host are solved too, if K is given.
    similarity
        Of two items: G_ij / √(G_ii G_jj), or G_ij. Of equal ones the lower id is the nearer.
    warm_start
        Start from the weights of the last run.
    warm_tolerance
        Items whose last weights solve today's problem up to this residual keep them as they are;
        only the others are solved again, to ``tolerance``. After 3% more events in all corners of
        a catalogue, 0.03 keeps some 40% of the items and 0.001 hardly any.
    """

    l1: NonNegative = 5.0
    l2: NonNegative = 5.0
    values: Literal["binary", "weight"] = "binary"
    tolerance: Annotated[float, Field(gt=0)] = 1e-6
    max_iterations: PositiveInt = 10_000
    memory_budget_mb: PositiveInt = 1024
    max_neighbours: PositiveInt | None = None
    similarity: Literal["cosine", "cooccurrence"] = "cosine"
    warm_start: bool = False
    warm_tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.03


class Sequences(Strict):
    """How a user's events become rows of one fixed length, for sequential models.

    Attributes
    ----------
    length
        L: events a row holds; shorter ones are padded on the left.
    session_gap_minutes
        A row never crosses a longer pause between two events; None: histories are not cut.
    stride
        None keeps the last ``length`` events of a user (or session). A number adds the windows of
        ``length`` events that end so many events apart, from the first on: training on all of a
        long history.
    event_types
        Types that enter; None: all but those of polarity ``shown``.
    """

    length: PositiveInt = 50
    session_gap_minutes: Annotated[float, Field(gt=0)] | None = None
    stride: PositiveInt | None = None
    event_types: list[str] | None = None


class NegativeRule(Strict):
    """A column of items in which a negative must equal its positive.

    Attributes
    ----------
    column
        ``categories`` (one of them in common is enough), ``title``, or one of ``attributes``.
    edges
        Ascending bounds that make bands of a number, as in a price band.
    """

    column: str
    edges: list[float] | None = None


class Negatives(Strict):
    """Items to stand against each positive event, as a table for models of one's own.

    Networks here draw theirs afresh in every step: see ``networks.NAME.loss.sampler``.

    Attributes
    ----------
    sampler
        ``uniform`` over the recommendable items, or by ``popularity``, their training events to
        the power of ``alpha``.
    per_positive
        m: negatives of a positive event.
    rules
        Columns of items in which a negative equals the positive; all have to hold.
    explicit
        Event types (as dislikes, or impressions that were not taken) whose items come first among
        the user's negatives.
    shortage
        For a user who has too few other items: ``fewer`` negatives, or an ``error``.
    """

    sampler: Literal["uniform", "popularity"] = "uniform"
    alpha: NonNegative = 0.75
    per_positive: PositiveInt = 4
    rules: list[NegativeRule] = []
    explicit: list[str] = []
    shortage: Literal["fewer", "error"] = "fewer"


class Sequentiality(Strict):
    """How the rules of a log are counted, and how often its histories are shuffled.

    Attributes
    ----------
    min_count
        Times that two or three items must follow each other to be a rule.
    min_confidence
        Share of the times that a rule's first item (or two) occurs in which its last one follows.
    shuffles
        Seeded shuffles that are averaged.
    k
        Length of the lists that trained networks make of histories as they are and shuffled.
    """

    min_count: PositiveInt = 5
    min_confidence: Share = 0.1
    shuffles: PositiveInt = 5
    k: PositiveInt = 10


class Export(Strict):
    """What networks are trained on, as files.

    Attributes
    ----------
    lanes
        Streams that the rows are dealt to; processes share them out, so a multiple of any number
        of processes that will train on it. Batches are of as many rows of each.
    validation_users
        Users on whose validation events training is measured: all, or so many, by hash.
    hold_out
        False trains on validation events too, as SLIM is fitted, for all ``epochs``: the last
        training of a backtest, when validation has chosen their number. Of a user's events the
        newest ``sequences.length`` are read, so not with windows or sessions.
    """

    lanes: PositiveInt = 16
    validation_users: PositiveInt = 20_000
    hold_out: bool = True


class Popularity(Strict):
    """Popularity: positive events of an item, of all times or the last ``days``."""

    days: PositiveInt | None = None


class Recommend(Strict):
    """The lists.

    Attributes
    ----------
    k
        Items of a list.
    exclude_seen
        Whether items are left out that the user has had.
    why
        Most items of the history that are told as reasons; networks tell none.
    """

    k: PositiveInt = 20
    exclude_seen: bool = True
    why: Annotated[int, Field(ge=0)] = 3


ProtocolName = Literal["full", "uniform100", "popularity100", "given", "relevance"]


class Gate(Strict):
    """A metric that must not fall below a value; a backtest that misses it fails, and says so.

    ``k`` is null for ``auc`` and ``accuracy``, and may be for metrics of whole rankings. Metrics of
    lists are of protocol ``full``, ``accuracy`` of ``relevance``.
    """

    model: ModelName
    metric: MetricName
    at_least: Annotated[float, Field(allow_inf_nan=False)]
    k: PositiveInt | None = 10
    protocol: ProtocolName = "full"

    @model_validator(mode="after")
    def _is_ever_measured(self) -> Gate:
        if self.metric in METRICS_WITHOUT_K and self.k is not None:
            raise ValueError(f"{self.metric} is not measured at a length: give k: null")
        if self.metric in METRICS_OF_LISTS and self.k is None:
            raise ValueError(f"{self.metric} is measured at a length: give k")
        of_relevance = self.protocol == "relevance"
        if of_relevance and self.metric not in METRICS_WITHOUT_K:
            raise ValueError(f"relevance measures {', '.join(METRICS_WITHOUT_K)} alone")
        if self.metric == "accuracy" and not of_relevance:
            raise ValueError("accuracy is measured of relevance alone: give protocol: relevance")
        if self.metric == "accuracy" and self.model not in NETWORKS:
            raise ValueError("accuracy is measured of networks alone, whose scores are logits")
        if self.metric in METRICS_OF_LISTS and self.protocol != "full":
            raise ValueError(f"{self.metric} is of lists: leave out protocol")
        return self

    @property
    def label(self) -> str:
        """The metric as people write it."""
        at = "" if self.k is None else f"@{self.k}"
        return f"{self.metric}{at} of {self.model} ({self.protocol})"


class Evaluate(Strict):
    """What is measured, over the ``ks`` first items of lists.

    ``split: test`` fits on training and validation events and ranks the test targets;
    ``validation`` fits on training events alone. Protocol ``relevance`` asks of single items
    whether the user likes them; at least one other is given, by which targets are ranked.
    ``baseline`` is the model that ``metric_differences`` compares the others with, where it is
    among ``models``. ``ties: against`` puts candidates of the target's score before it, ``random``
    gives the expectation over all their orders.
    """

    split: Literal["validation", "test"] = "test"
    protocols: Annotated[list[ProtocolName], Different] = ["full"]
    ks: Annotated[list[PositiveInt], Different] = Field(default=[1, 5, 10, 20], min_length=1)
    ties: Literal["against", "random"] = "against"
    bootstrap: PositiveInt = 200
    baseline: ModelName = "popularity"
    gates: list[Gate] = []

    @field_validator("protocols")
    @classmethod
    def _something_is_ranked(cls, value: list[str]) -> list[str]:
        if not set(value) - {"relevance"}:
            raise ValueError("name a protocol that ranks too, as in [full, relevance]")
        return value


class TuneSlim(Strict):
    """The grid that ``recs tune slim`` searches on validation events."""

    l1: Annotated[list[NonNegative], Different] = Field(default=[1.0, 2.0, 5.0, 10.0], min_length=1)
    l2: Annotated[list[NonNegative], Different] = Field(
        default=[1.0, 10.0, 100.0, 500.0], min_length=1
    )
    protocol: Literal["full", "uniform100", "popularity100"] = "full"
    metric: Literal["ndcg", "hr", "mrr"] = "ndcg"
    k: PositiveInt = 10


class Upkeep(Strict):
    """What ``recs upkeep`` puts together and removes.

    Attributes
    ----------
    files, small_mb
        A table of more files than this, which are smaller than so many MiB on average, is
        compacted.
    deleted_share
        A table of which a larger share of the rows in files is deleted is compacted.
    models
        Trained models, and searches, that are kept of each network, beside what is embedded.
    unfinished_days
        Days after which a training or search that did not end is given up, and its folder removed.
    """

    files: PositiveInt = 16
    small_mb: PositiveInt = 64
    deleted_share: Share = 0.2
    models: PositiveInt = 3
    unfinished_days: PositiveInt = 14


class TunedNetwork(Network):
    """A network, and the space of its settings that ``recs tune`` searches."""

    tune: Tune | None = None

    @property
    def network(self) -> Network:
        """The network alone: what is trained does not depend on what is searched."""
        return Network(model=self.model, loss=self.loss, training=self.training)


#: Settings that hold a secret: Spark's own ``spark.redaction.regex``, and what it leaves out; but
#: for those that say where one lies, or of what kind it is.
_SECRET = re.compile(
    r"secret|password|token|access[.]?key|account[.]key|[.]sas[.]|private[.]key|encryption[.]key",
    re.IGNORECASE,
)
_ABOUT_A_SECRET = re.compile(
    r"[.-](file|path|type|binding|impl|provider|enabled)([.]|$)|File$|[.]secrets[.]|[.]secretKeyRef[.]"
)
_SECRET_VALUE = re.compile(
    r"://[^\s/?#]*:[^\s@]*@|-D\S*(?:password|secret|token)\S*=", re.IGNORECASE
)


def _in_spark(value: Any) -> Any:
    """Return a setting as Spark writes it: ``true``, ``2``."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


class Config(Strict):
    """Everything a pipeline needs."""

    name: str
    root: str
    catalog: str | None = None
    mode: Literal["backtest", "serve"] = "backtest"
    seed: int = 42
    run_id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}$")
    rebuild: bool = Field(False, description="make all tables anew instead of extending them")
    data: str | None = None
    folder: str | None = Field(None, description="subfolder of data, where data holds several sets")
    models: Annotated[list[ModelName], Different] = ["popularity", "slim"]
    events: Events
    items: list[ItemSource] = []
    users: list[UserSource] = []
    candidates: list[CandidateSource] = []
    split: Split = Split()
    sequences: Sequences | None = None
    negatives: Negatives | None = None
    sequentiality: Sequentiality = Sequentiality()
    slim: Slim = Slim()
    popularity: Popularity = Popularity()
    export: Export = Export()
    networks: dict[NetworkName, TunedNetwork] = {}
    processes: Processes = Processes()
    recommend: Recommend = Recommend()
    evaluate: Evaluate = Evaluate()
    tune_slim: TuneSlim = TuneSlim()
    upkeep: Upkeep = Upkeep()
    spark: dict[str, str] = {}

    @field_validator("spark", mode="before")
    @classmethod
    def _as_spark_writes_them(cls, value: Any) -> Any:
        """Take numbers, booleans and nested keys: an override ``spark.a.b=2`` nests them."""
        if not isinstance(value, dict):
            return value
        settings = {key: _in_spark(setting) for key, setting in leaves(value)}
        for key, setting in settings.items():
            # They would go onto the JVM's command line, which all users of a machine can read.
            secret = _SECRET.search(key) and not _ABOUT_A_SECRET.search(key)
            if secret or _SECRET_VALUE.search(str(setting)):
                raise ValueError(
                    f"{key} holds a credential: give it by the environment, spark-defaults.conf or "
                    "a credential provider (hadoop.security.credential.provider.path)"
                )
        return settings

    @field_validator("models", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _networks_are_named(cls, values: Any) -> Any:
        """Give each network of ``models`` its section, so that settings are where one looks."""
        models = values.get("models") if isinstance(values, dict) else None
        names = models.split(",") if isinstance(models, str) else models
        asked = [str(name).strip() for name in names] if isinstance(names, list) else []
        known: dict[str, Any] = {name: {} for name in asked if name in NETWORKS}
        return {**values, "networks": known | (values.get("networks") or {})} if known else values

    @model_validator(mode="after")
    def _nothing_is_held_out(self) -> Config:
        if self.export.hold_out:
            return self
        if self.evaluate.split == "validation":
            raise ValueError(
                "export.hold_out: false trains on the events that evaluate.split: validation "
                "ranks: change one of them"
            )
        if self.sequences and (self.sequences.stride or self.sequences.session_gap_minutes):
            raise ValueError(
                "export.hold_out: false trains on the newest events of each user: leave out "
                "sequences.stride and sequences.session_gap_minutes"
            )
        return self

    @model_validator(mode="after")
    def _candidates_are_given(self) -> Config:
        if "given" in self.evaluate.protocols and not self.candidates:
            raise ValueError(
                "evaluate.protocols names 'given', but there are no candidates: give their source, "
                "or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _event_types_are_known(self) -> Config:
        named = {
            "sequences.event_types": (self.sequences and self.sequences.event_types) or [],
            "negatives.explicit": self.negatives.explicit if self.negatives else [],
        }
        for key, types in named.items():
            unknown = [name for name in types if name not in self.events.types]
            if unknown:
                raise ValueError(
                    f"{key} names {unknown[0]!r}, which is none of events.types "
                    f"{list(self.events.types)}"
                )
        return self

    @field_validator("catalog")
    @classmethod
    def _names_a_schema(cls, value: str | None) -> str | None:
        if value is not None and not _CATALOG.fullmatch(value):
            raise ValueError(
                "give 'schema' or 'catalog.schema', of letters, digits and underscores"
            )
        return value

    @field_validator("root", "data")
    @classmethod
    def _safe_uri(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                check_uri(value)
            except StorageError as error:
                raise ValueError(str(error)) from error
            if not has_scheme(value):
                value = os.path.abspath(os.path.expanduser(value))
        return value

    def hash(self, *keys: str) -> str:
        """Return a hash of the settings with these keys, the same for equal values.

        Keys are dotted; ``*`` stands for all keys of a mapping, or elements of a list.
        """
        values = self.pick(*keys)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def pick(self, *keys: str) -> dict[str, Any]:
        """Return the settings with these keys, as :meth:`hash` reads them."""
        whole = self.model_dump(mode="json")
        return {key: _pick(whole, key.split(".")) for key in keys}

    def require_sources(self) -> None:
        """Refuse to ingest where a source is missing, or two sources of events read one path.

        The second would find nothing new in it.

        Raises
        ------
        ConfigError
            With the path.
        """
        for source in (*self.items, *self.users, *self.candidates):
            self.locate(source)
        paths = [self.locate(source) for source in self.events.sources]
        for number, path in enumerate(paths):
            first = paths.index(path)
            if first < number:
                raise ConfigError(
                    f"events.sources.{first} and events.sources.{number} both read "
                    f"{redact(path)}: give each its own files"
                )

    def locate(self, source: Delivery) -> str:
        """Return the path of a source: the first of its alternatives that exists.

        Of remote paths the first is returned as it is; Spark tells if it is missing.

        Raises
        ------
        ConfigError
            If a local path does not exist.
        """
        tried = []
        bases = [self.data] if self.data else []
        if self.data and self.folder:
            bases.insert(0, join(self.data, self.folder))
        for path in source.paths:
            whole = has_scheme(path) or os.path.isabs(path)
            for full in [path] if whole else [join(base, path) for base in bases]:
                for name in (full, full + ".gz"):
                    if may_exist(check_uri(name)):
                        return name
                tried.append(full)
        if not self.data and not tried:
            raise ConfigError(
                f"{source.paths[0]!r} lies in the data folder: give it as data=FOLDER"
            )
        raise ConfigError(
            f"none of these exists: {', '.join(tried)}; give the folder as data=FOLDER"
        )


def _pick(node: Any, parts: list[str]) -> Any:
    """Return what a key, in parts, stands for below ``node``."""
    if not parts:
        return node
    if parts[0] == "*" and isinstance(node, list):
        return [_pick(value, parts[1:]) for value in node]
    if parts[0] == "*":
        return {key: _pick(value, parts[1:]) for key, value in node.items()}
    return _pick(node[parts[0]], parts[1:])


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply ``key=value`` overrides (dotted keys), and check it all.

    Raises
    ------
    ConfigError
        Naming the file, the key and, for an unknown key, the nearest known one.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"config {path} is a folder: give a YAML file in it")
    if not path.is_file():
        raise ConfigError(f"config {path} does not exist")
    try:
        values = _read_yaml(_text(path)) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path} is not YAML: {_one_line(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"config {path}{error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"config {path} must hold keys and values, it holds {type(values).__name__}"
        )
    # A section all of whose keys are commented out is not there.
    values = {key: value for key, value in values.items() if value is not None}
    values.setdefault("name", path.stem)
    for override in overrides or []:
        _apply(values, override)
    if "root" not in values:
        raise ConfigError("no place for the tables is given: add root=FOLDER (local, s3a://, …)")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from error
    return config


def _text(path: Path) -> str:
    """Return the text of a file; ConfigError, to come after its name, if it is not UTF-8."""
    content = path.read_bytes()
    try:
        # Most of UTF-16 without a mark at its beginning is UTF-8 too, with zeros in it.
        if b"\0" not in content:
            return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    raise ConfigError(" is not UTF-8: save it as UTF-8")


def _read_yaml(text: str, parents: tuple[str, ...] = ()) -> Any:
    """Return what a YAML text says, under the key that ``parents`` make.

    Raises
    ------
    yaml.YAMLError
        If it is no YAML.
    ConfigError
        If a key is no text or is given twice; to come after the name of what was read.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_keys(root, parents, set())
        return loader.construct_document(root)
    except ValueError as error:  # of what looks like a date
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, parents: tuple[str, ...], checked: set[int]) -> None:
    """Refuse keys that are no texts, and keys given twice, of which YAML takes the last."""
    if id(node) in checked:  # *name stands for it once more
        return
    checked.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _check_keys(value, (*parents, str(number)), checked)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            kind = key.tag.rpartition(":")[2]
            shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "this"
            raise ConfigError(f": line {line}: {shown} is a key of type {kind}: put it in quotes")
        name = ".".join((*parents, key.value))
        if key.value in lines:
            raise ConfigError(
                f": key {name!r} is given twice (lines {lines[key.value]} and {line})"
            )
        lines[key.value] = line
        _check_keys(value, (*parents, key.value), checked)


def _one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark, context = error.problem_mark, f"{error.context}, " if error.context else ""
    return f"{context}{error.problem} (line {mark.line + 1}, column {mark.column + 1})"


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must have the form key=value, as in slim.l1=2")
    *parents, last = key.split(".")
    node: Any = values
    for parent in parents:
        node = _child(node, parent) if isinstance(node, dict) else _element(node, parent, key)
    if not isinstance(node, dict):
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} holds no keys")
    try:
        node[last] = text if _is_plain(last, text) else _read_yaml(text, parents=(key,))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: {text!r} is no YAML; give a number, a word or [a, list]"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"override {override!r}{error}") from error


def _is_plain(key: str, text: str) -> bool:
    """Tell whether the value of an override is the text itself, even where YAML reads another."""
    if key in ("separator", "category_separator", "quote"):
        return len(text) < 3 or text[0] not in "'\""
    return key in ("root", "data", "run_id", "name")


def _child(node: dict[str, Any], key: str) -> Any:
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _element(node: Any, index: str, key: str) -> Any:
    if isinstance(node, list) and index.isdigit() and int(index) < len(node):
        return node[int(index)]
    raise ConfigError(f"override {key!r}: there is no {index!r}")


def _explain(path: Path, error: ValidationError) -> str:
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
