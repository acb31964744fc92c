"""The one vocabulary of the lake: tables, columns, types, constraints, clustering, migrations.

A column is spelled once, here. Three scopes exist: tables of scope ``lake`` hold what was delivered
and are shared by both modes; tables of scope ``mode`` exist once for ``backtest`` (histories cut
before the held-out events) and once for ``serve`` (fitted on everything), and never mix; those of
scope ``model`` have in each mode a part a model, as ``ranks/slim``, which is a Delta table of its
own: what is done with one model never waits for another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["backtest", "serve"]
MODES: tuple[Mode, ...] = ("backtest", "serve")

#: The one order of a user's events. ``position`` is a declared column's number (null without one);
#: ``source_order`` (paths of files in natural order; see :mod:`recs.data.files`) and ``line`` say
#: where the event was delivered and break what ties remain. Item ids never order anything: in some
#: files they follow the first appearance and would leak the future.
EVENT_ORDER = ("timestamp", "position", "source_order", "line")

#: The largest value of an event, and weight of an event type, whose product and its sums a float32
#: still holds.
MAX_VALUE, MAX_TYPE_WEIGHT = 1e24, 1e6

#: What stands where a sequence has no item or event type.
PADDING = -1

#: Columns of table ``sequences``, and of a training set, that hold an array of one entry an event.
SEQUENCE_ARRAYS = ("items", "event_types", "gaps")

#: Metrics in table ``metrics``: of rankings, at each k and over the whole; of lists, at each k; of
#: whole rankings or judgements.
METRICS_OF_RANKS = ("hr", "recall", "precision", "ndcg", "map", "mrr")
METRICS_OF_LISTS = ("coverage", "gini", "novelty", "popularity_bias", "diversity")
METRICS_WITHOUT_K = ("auc", "accuracy")

#: Share of a held-out target: which part of a user's history an interaction belongs to.
SPLITS = ("train", "validation", "test")


#: Days for which files stay that a version no longer has, and commits in Delta's log.
KEPT_DAYS, LOG_DAYS = 30, 60

#: Of every table: VACUUM, whoever runs it, leaves the files of versions that runs still name.
_KEPT = {
    "delta.deletedFileRetentionDuration": f"interval {KEPT_DAYS} days",
    "delta.logRetentionDuration": f"interval {LOG_DAYS} days",
}


@dataclass(frozen=True)
class Column:
    """A column: its name, Spark SQL type, meaning, and whether it may be null."""

    name: str
    type: str
    comment: str
    nullable: bool = True


@dataclass(frozen=True)
class Migration:
    """Columns that a schema version added; older rows read null in them."""

    version: int
    add: tuple[Column, ...]


@dataclass(frozen=True)
class Table:
    """A Delta table: columns, constraints and how it is laid out.

    Attributes
    ----------
    checks
        Name to SQL condition; Delta refuses a write with a row that breaks one.
    cluster_by
        Columns of liquid clustering.
    grows
        Whether rows are only ever added to it.
    properties
        Delta table properties beside those that recs sets on every table.
    scope
        What has a table of its own: the lake, a mode, or a model in a mode.
    migrations
        What was added since version ``first``, ascending; the schema version is the last one's.
    first
        Version of ``columns``; a table of an older one is refused.
    """

    name: str
    comment: str
    columns: tuple[Column, ...]
    scope: Literal["lake", "mode", "model"] = "mode"
    checks: dict[str, str] = field(default_factory=dict)
    cluster_by: tuple[str, ...] = ()
    grows: bool = False
    properties: dict[str, str] = field(default_factory=dict)
    migrations: tuple[Migration, ...] = ()
    first: int = 1

    @property
    def version(self) -> int:
        """The schema version that this code writes."""
        return self.migrations[-1].version if self.migrations else self.first

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """Columns of the present schema version."""
        return (*self.columns, *self.added)

    @property
    def added(self) -> tuple[Column, ...]:
        """Columns that migrations added, in order."""
        return tuple(column for migration in self.migrations for column in migration.add)

    @property
    def all_properties(self) -> dict[str, str]:
        """Delta's properties of the table."""
        properties = _KEPT | self.properties
        if self.cluster_by:
            # Statistics of other columns take time to collect, and no reader skips files by them.
            by = ",".join((*self.cluster_by, "run_id"))
            properties["delta.dataSkippingStatsColumns"] = by
        return properties

    def ddl(self, *names: str) -> str:
        """Return names and types of these columns, in this order, as Spark reads a schema."""
        types = {column.name: column.type for column in self.all_columns}
        return ", ".join(f"{name} {types[name]}" for name in names)


_RUN_ID = Column("run_id", "string", "run that wrote the row; see table runs", nullable=False)
_USER_ID = Column("user_id", "int", "dense user number from 0; see user_ids", nullable=False)
_ITEM_ID = Column("item_id", "int", "dense item number from 0; see item_ids", nullable=False)
_EVENT_ID = Column("event_id", "bigint", "hash of what was delivered; see events", nullable=False)
_SOURCE = Column("source", "int", "number of the file or table; see files", nullable=False)
_MODEL = Column("model", "string", "name of the model", nullable=False)
_MODEL_VERSION = Column("model_version", "string", "run that fitted the model", nullable=False)
_SPLIT = Column("split", "string", "train, validation or test", nullable=False)
_PROTOCOL = Column(
    "protocol",
    "string",
    "candidates ranked: full, uniform100, popularity100, given; or relevance: pairs judged",
    nullable=False,
)

_METRIC_COLUMNS = (
    _PROTOCOL,
    _SPLIT,
    Column("slice", "string", "users or targets measured: all, head, tail, …", nullable=False),
    Column("metric", "string", "hr, ndcg, mrr, recall, precision, map, auc, …", nullable=False),
    Column("k", "int", "length of the list; null for the whole ranking"),
    Column("ties", "string", "equal scores: against the target, or mean over random orders"),
    Column("value", "double", "mean over users, or the metric of all lists together"),
    Column("lower", "double", "2.5% bound of the bootstrap over users"),
    Column("upper", "double", "97.5% bound of the bootstrap over users"),
    Column("users", "bigint", "users the value is over", nullable=False),
)


def _table(*columns: Column, name: str, comment: str, **options: object) -> Table:
    return Table(name, comment, (*columns, _RUN_ID), **options)  # type: ignore[arg-type]


#: Of tables that lose some of their rows: these are marked as gone, and the files that hold them
#: are not written anew.
_ROWS_DELETED = {"delta.enableDeletionVectors": "true"}

_ALL = (
    Table(
        "runs",
        "The commit point: one row an ended attempt at a stage. Consumers read the table versions "
        "that the newest finished run names.",
        (
            Column("sequence", "bigint", "place in the ledger, gapless", nullable=False),
            _RUN_ID,
            Column("stage", "string", "stage of the pipeline", nullable=False),
            Column("attempt", "int", "1, 2, … of this run and stage, for people", nullable=False),
            Column("mode", "string", "backtest or serve", nullable=False),
            Column("state", "string", "finished or failed", nullable=False),
            Column("config_hash", "string", "hash of the settings the stage reads", nullable=False),
            Column("code_version", "string", "version of recs", nullable=False),
            Column("inputs", "map<string,bigint>", "table to the Delta version read"),
            Column("outputs", "map<string,bigint>", "table to the Delta version written"),
            Column("rows", "map<string,bigint>", "table to rows written by the run"),
            Column("overwritten", "array<string>", "outputs whose former rows are all gone"),
            Column("details", "map<string,string>", "what the stage keeps for the next run"),
            Column("started_at", "timestamp", "UTC", nullable=False),
            Column("seconds", "double", "wall clock of the stage"),
            Column("error", "string", "what a failed run said"),
        ),
        migrations=(
            Migration(
                2,
                (
                    Column("part", "string", "model that the stage is of; null of all"),
                    Column("settings", "string", "settings that the stage reads, as JSON"),
                    Column("versions", "map<string,string>", "software to its version"),
                    Column("bytes", "map<string,bigint>", "table to bytes written by the run"),
                    Column("memory", "map<string,bigint>", "process to its peak bytes"),
                ),
            ),
        ),
        scope="lake",
        checks={"known_state": "state IN ('finished', 'failed')"},
        # A commit a run, of one row: statistics and frequent checkpoints only cost.
        properties={"delta.checkpointInterval": "100", "delta.dataSkippingNumIndexedCols": "0"},
    ),
    _table(
        _SOURCE,
        Column("kind", "string", "events, items, users or candidates", nullable=False),
        Column("path", "string", "file or table as it was found", nullable=False),
        Column("place", "string", "the path with padded numbers: sorts naturally", nullable=False),
        Column("size", "bigint", "bytes of the file; null for a table"),
        Column("modified", "bigint", "milliseconds since 1970; null for a table"),
        Column("version", "bigint", "Delta version of the table; null for a file"),
        Column("settings", "string", "hash of how the source was read", nullable=False),
        name="files",
        grows=True,
        comment="Files and versions of tables that ingest has read, append-only",
        scope="lake",
        migrations=(
            Migration(
                2, (Column("table_id", "string", "Delta's id of the table; null for a file"),)
            ),
        ),
    ),
    _table(
        _EVENT_ID,
        Column("user", "string", "id of the user as delivered", nullable=False),
        Column("item", "string", "id of the item as delivered", nullable=False),
        Column("timestamp", "timestamp", "UTC; null where the data has none"),
        Column("position", "bigint", "place in the user's order, where a column gives it"),
        Column("event_type", "string", "view, like, …; null where none was delivered"),
        Column("value", "double", "rating, amount, …; null where none was delivered"),
        Column("context", "map<string,string>", "further columns of the event"),
        Column("held_out", "string", "split that the data set's own files give the event"),
        _SOURCE,
        Column("line", "bigint", "line or row in the source, from 0", nullable=False),
        name="events",
        grows=True,
        comment="Accepted events as delivered; no run removes those of another",
        scope="lake",
        checks={
            "value_in_range": f"value IS NULL OR (value >= 0 AND value <= {MAX_VALUE})",
            "known_split": "held_out IS NULL OR held_out IN ('train', 'validation', 'test')",
        },
        cluster_by=("timestamp", "user"),
        properties=_ROWS_DELETED,
        first=2,
    ),
    _table(
        Column("raw", "string", "the row as delivered", nullable=False),
        Column("reason", "string", "why it was rejected", nullable=False),
        Column("source", "string", "file or table that delivered it", nullable=False),
        Column("line", "bigint", "line or row in the source, from 0", nullable=False),
        name="quarantine",
        grows=True,
        comment="Rejected rows with their reason, append-only",
        scope="lake",
        cluster_by=("reason",),
    ),
    _table(
        Column("user", "string", "id of the user as delivered", nullable=False),
        Column("item", "string", "the target's id as delivered", nullable=False),
        Column("candidates", "array<string>", "items to rank the target among", nullable=False),
        name="candidate_lists",
        comment="Candidate lists given with a data set",
        scope="lake",
    ),
    _table(
        Column("item", "string", "id of the item as delivered", nullable=False),
        Column("title", "string", "name shown to people"),
        Column("categories", "array<string>", "genres, departments, …"),
        Column("text", "string", "description"),
        Column("attributes", "map<string,string>", "further columns"),
        name="items",
        comment="What is known of items; the newest delivery of an item wins",
        scope="lake",
        cluster_by=("item",),
    ),
    _table(
        Column("user", "string", "id of the user as delivered", nullable=False),
        Column("attributes", "map<string,string>", "demographics and further columns"),
        name="users",
        comment="What is known of users; the newest delivery of a user wins",
        scope="lake",
        cluster_by=("user",),
    ),
    _table(
        Column("user", "string", "id of the user as delivered", nullable=False),
        _USER_ID,
        name="user_ids",
        grows=True,
        comment="Dense user numbers; they grow and never change",
        scope="lake",
        checks={"dense": "user_id >= 0"},
        cluster_by=("user",),
    ),
    _table(
        Column("item", "string", "id of the item as delivered", nullable=False),
        _ITEM_ID,
        name="item_ids",
        grows=True,
        comment="Dense item numbers; they grow and never change",
        scope="lake",
        checks={"dense": "item_id >= 0"},
        cluster_by=("item",),
    ),
    _table(
        Column("event_type", "string", "view, like, purchase, dislike, …", nullable=False),
        Column("event_type_id", "int", "dense number of the type from 0", nullable=False),
        name="event_type_ids",
        grows=True,
        comment="Dense numbers of event types; they grow and never change",
        scope="lake",
    ),
    _table(
        _USER_ID,
        _ITEM_ID,
        Column("sequence", "int", "place in the user's order, from 0", nullable=False),
        Column("timestamp", "timestamp", "UTC; null where the data has none"),
        Column("event_type", "string", "view, like, purchase, dislike, …", nullable=False),
        Column("weight", "double", "value of the event times its type's weight", nullable=False),
        Column("positive", "boolean", "the type's polarity is positive", nullable=False),
        _SPLIT,
        _EVENT_ID,
        Column("context", "map<string,string>", "further columns of the event"),
        name="interactions",
        comment="Events of kept users and items in dense ids, in order, each in its split",
        first=2,
        checks={"known_split": "split IN ('train', 'validation', 'test')"},
        cluster_by=("user_id",),
        properties=_ROWS_DELETED,
    ),
    _table(
        _USER_ID,
        Column(
            "upto",
            "string",
            "newest split of events in it: train, validation",
            nullable=False,
        ),
        Column("session", "int", "0, 1, … where histories are cut at pauses", nullable=False),
        Column("last", "int", "interactions.sequence of its last event", nullable=False),
        Column("length", "int", "events it holds"),
        Column("items", "array<int>", "item numbers in order"),
        Column("event_types", "array<int>", "event_type_id of each"),
        Column("gaps", "array<int>", "seconds since the event before; 0 for the first"),
        name="sequences",
        comment="The last events of users (or sessions) as arrays as long as there are events",
        checks={"known_upto": "upto IN ('train', 'validation')", "not_empty": "length > 0"},
        cluster_by=("user_id",),
        properties=_ROWS_DELETED,
    ),
    _table(
        _USER_ID,
        Column("train", "array<int>", "items of positive training events, ascending, once each"),
        Column("validation", "array<int>", "the same of the validation"),
        Column("test", "array<int>", "the same of the test"),
        name="user_positives",
        comment="All items that a user has wanted: never drawn as the user's negatives",
        cluster_by=("user_id",),
        properties=_ROWS_DELETED,
    ),
    _table(
        _USER_ID,
        Column("sequence", "int", "interactions.sequence of the positive event", nullable=False),
        Column("item_id", "int", "item of the positive event", nullable=False),
        Column("negatives", "array<int>", "items that stand against it", nullable=False),
        name="negatives",
        comment="Drawn negatives of each positive event that models are fitted on",
        cluster_by=("user_id",),
    ),
    _table(
        _ITEM_ID,
        Column("train_events", "bigint", "positive interactions of training", nullable=False),
        Column("known_events", "bigint", "the same of training and validation", nullable=False),
        name="catalogue",
        first=2,
        comment="Items of the vocabulary, and what models may know of them: see evaluate.split",
    ),
    _table(
        _MODEL,
        _ITEM_ID,
        Column("score", "float", "events of the item in the window", nullable=False),
        name="popularity",
        scope="model",
        comment="Popularity of items",
        checks={"score_not_negative": "score >= 0"},
    ),
    _table(
        _MODEL,
        _ITEM_ID,
        Column("neighbour_id", "int", "item whose presence in a history scores", nullable=False),
        Column("weight", "float", "w of item_id for neighbour_id", nullable=False),
        name="item_weights",
        scope="model",
        comment="SLIM's W, column by column: score(u, item) = Σ weight over the user's neighbours",
        checks={"weight_positive": "weight > 0", "no_self": "item_id <> neighbour_id"},
        cluster_by=("item_id",),
    ),
    _table(
        _MODEL,
        _ITEM_ID,
        Column("iterations", "int", "sweeps of coordinate descent", nullable=False),
        Column("nonzeros", "int", "neighbours with a weight", nullable=False),
        Column("kkt_residual", "double", "largest violation of the KKT conditions", nullable=False),
        Column("objective", "double", "value of the item's objective", nullable=False),
        name="item_fits",
        scope="model",
        comment="How each item's SLIM problem ended",
    ),
    _table(
        _MODEL,
        Column("path", "string", "folder of the weights", nullable=False),
        Column("training_set", "string", "folder it was trained on", nullable=False),
        Column("settings", "string", "what it was trained with, as JSON", nullable=False),
        Column("metric", "string", "validation metric that it was stopped by", nullable=False),
        Column("validation", "double", "its best value; null without validation events"),
        Column("best_epoch", "int", "epoch of that value, from 0; -1 without one", nullable=False),
        Column("epochs", "int", "epochs trained", nullable=False),
        Column("updates", "bigint", "steps of the optimizer", nullable=False),
        Column("seconds", "double", "of training, measurements included", nullable=False),
        name="trainings",
        grows=True,
        scope="model",
        comment="Trained networks, append-only",
    ),
    _table(
        _MODEL,
        _MODEL_VERSION,
        _ITEM_ID,
        Column("vector", "array<float>", "score(u, item) = ⟨vector of u, this⟩ + bias"),
        Column("bias", "float", "added to every user's score", nullable=False),
        name="item_embeddings",
        scope="model",
        comment="What networks have learned of items",
        cluster_by=("item_id",),
    ),
    _table(
        _MODEL,
        _MODEL_VERSION,
        _USER_ID,
        Column("last", "int", "interactions.sequence of the newest event read", nullable=False),
        Column("vector", "array<float>", "the user's query: see item_embeddings"),
        name="user_embeddings",
        scope="model",
        comment="What networks make of users' newest events",
        cluster_by=("user_id",),
        properties=_ROWS_DELETED,
    ),
    _table(
        _MODEL,
        _MODEL_VERSION,
        _USER_ID,
        Column("user", "string", "id of the user as delivered", nullable=False),
        Column("rank", "int", "1 is best", nullable=False),
        _ITEM_ID,
        Column("item", "string", "id of the item as delivered", nullable=False),
        Column("score", "float", "score of the model", nullable=False),
        Column(
            "why",
            "array<struct<item_id:int,share:float>>",
            "history items that gave most of the score, with their share of it",
        ),
        Column("fallback", "boolean", "popularity filled in for the model", nullable=False),
        name="recommendations",
        scope="model",
        comment="Top items a user and model",
        checks={"rank_from_one": "rank >= 1"},
        cluster_by=("user_id",),
    ),
    _table(
        _MODEL,
        _MODEL_VERSION,
        _PROTOCOL,
        _SPLIT,
        _USER_ID,
        Column("item_id", "int", "the held-out target", nullable=False),
        Column("rank", "bigint", "1 + candidates scored above the target; null: not ranked"),
        Column("ties", "bigint", "other candidates scored like the target"),
        Column("candidates", "bigint", "candidates, the target among them"),
        Column("history_length", "int", "positive items of the user fitted on", nullable=False),
        Column("head", "boolean", "target is of the most popular fifth", nullable=False),
        Column("repeat", "boolean", "user has had the item before the split", nullable=False),
        name="ranks",
        scope="model",
        first=2,
        comment="Where each held-out target ended; all accuracy metrics come from here",
        cluster_by=("user_id",),
    ),
    _table(
        _MODEL,
        _MODEL_VERSION,
        _SPLIT,
        _USER_ID,
        _ITEM_ID,
        Column("liked", "boolean", "false: held out and disliked, or drawn", nullable=False),
        Column("score", "float", "score of the model", nullable=False),
        name="judgements",
        scope="model",
        comment="What each model says of held-out and drawn items (protocol relevance)",
        cluster_by=("user_id",),
    ),
    _table(
        _MODEL,
        _MODEL_VERSION,
        *_METRIC_COLUMNS,
        name="metrics",
        grows=True,
        scope="model",
        comment="Metrics of the model, of every run of rank",
    ),
    _table(
        _MODEL,
        Column("settings", "map<string,string>", "what the trial was fitted with", nullable=False),
        _PROTOCOL,
        _SPLIT,
        Column("metric", "string", "metric that is searched", nullable=False),
        Column("k", "int", "length of the list"),
        Column("value", "double", "mean over users", nullable=False),
        Column("users", "bigint", "users the value is over", nullable=False),
        Column("nonzeros", "bigint", "weights of the model"),
        Column("seconds", "double", "fit and measurement", nullable=False),
        name="trials",
        scope="model",
        comment="Trials of the newest search of settings",
    ),
    _table(
        Column("items", "int", "length of the rules: 2 or 3 items in a row", nullable=False),
        Column("shuffle", "int", "0, 1, … a seeded shuffle", nullable=False),
        Column("rules", "bigint", "rules of the log as it is", nullable=False),
        Column("shuffled_rules", "bigint", "rules of the shuffled log", nullable=False),
        Column("lost", "bigint", "rules of the log that the shuffled one lacks", nullable=False),
        name="sequentiality",
        comment="Frequent item sequences that are lost when histories are shuffled",
    ),
    _table(
        _MODEL,
        Column("shuffle", "int", "0, 1, … a seeded shuffle", nullable=False),
        Column("k", "int", "length of the lists", nullable=False),
        Column("ndcg", "double", "NDCG@k of histories as they are, full ranking", nullable=False),
        Column("shuffled_ndcg", "double", "NDCG@k of shuffled histories", nullable=False),
        Column("hr", "double", "HR@k of histories as they are", nullable=False),
        Column("shuffled_hr", "double", "HR@k of shuffled histories", nullable=False),
        Column("jaccard", "double", "mean Jaccard index of users' lists of both", nullable=False),
        Column("users", "bigint", "users with held-out targets", nullable=False),
        name="model_sequentiality",
        comment="What networks lose when the histories that they read are shuffled",
    ),
    _table(
        _MODEL,
        Column("baseline", "string", "model it is compared with", nullable=False),
        *_METRIC_COLUMNS,
        name="metric_differences",
        grows=True,
        comment="Paired differences, model minus baseline, over the same users, of every run",
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in _ALL}


#: What stages write beside tables, and others read: folders of files.
FOLDERS = ("training_set",)


def part(table: str, model: str) -> str:
    """Return the name of a model's part of a table, as ``ranks/slim``.

    Of a table that models share, it is the table's name.
    """
    return f"{table}/{model}" if TABLES[table].scope == "model" else table


def table_of(name: str) -> Table:
    """Return the table of a name: of ``items``, or of a model's part, as ``ranks/slim``.

    Raises
    ------
    KeyError
        If no table is called so, or the name has a part where the table has none, or lacks one.
    """
    table, _, model = name.partition("/")
    if bool(model) != (TABLES[table].scope == "model"):
        raise KeyError(name)
    return TABLES[table]
