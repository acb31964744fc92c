"""Raw deliveries → events, and what is known of items and users: the stage ``ingest``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import reduce

from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from pipelines.job import Job, Stage
from recs.config import CandidateSource, EventSource, ItemSource, Source, UserSource
from recs.data import entities, ingest
from recs.data.expectations import require_fresh, require_rows, require_usual
from recs.data.files import Delivered, ledger_rows, new_deliveries, settings_hash
from recs.data.sources import RAW, REASON, SOURCE, read_lines, read_rows
from recs.runs import Run
from recs.session import num_tasks, settings
from recs.storage import join

log = logging.getLogger("recs")

# Details of runs: events accepted, rows rejected by reason, time of the newest event ever.
_ACCEPTED, _REJECTED, _NEWEST = "accepted", "rejected", "newest"
_FORM = "yyyy-MM-dd'T'HH:mm:ss"


def run_ingest(job: Job) -> None:
    """Read what is new of the events, and of what is known of items, users and candidates."""
    conf = {
        # How files are cut into tasks is the same whenever they are read: lines are numbered by it.
        "spark.sql.files.minPartitionNum": str(num_tasks(job.spark)),
        # Times in nanoseconds, as pandas writes them, are read as numbers, and not refused.
        "spark.sql.legacy.parquet.nanosAsLong": "true",
    }
    with settings(job.spark, conf):
        deliveries = _Deliveries(job.run)
        for table in ("files", "events", "quarantine"):
            job.run.keep(table)
        _read_events(job, deliveries)
        _read_entities(job, deliveries)
        _read_candidates(job, deliveries)
        if deliveries.rows:
            job.write("files", reduce(DataFrame.unionByName, deliveries.rows), "append")


@dataclass
class _Deliveries:
    """What this run reads, by the ledger of what was read before; see :mod:`recs.data.files`."""

    run: Run
    rows: list[DataFrame] = field(default_factory=list)
    next_number: int = 0
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.run.has("files"):
            highest = self.run.read("files").agg(F.max("source")).collect()[0][0]
            self.next_number = 0 if highest is None else highest + 1

    def new(self, source: EventSource, path: str) -> list[Delivered]:
        """Return what is new of a source of events, and note that it is read."""
        found = self._unread(source, path, "events")
        # A file that two globs find is read by the first.
        found = [delivered for delivered in found if delivered.path not in self._taken]
        self._taken |= {delivered.path for delivered in found}
        self._note(found, "events", settings_hash(source))
        return found

    def to_merge(
        self, sources: Sequence[tuple[Source, str]], kind: str
    ) -> list[tuple[Source, list[Delivered]]]:
        """Return what is to be merged, in order, over what sources (and paths) said; it is noted.

        That is what is new. Where any of it comes before what was read, as a file of an earlier
        source that has changed does, it is all there is: what is said last counts, whenever it is
        read.
        """
        unread = [self._unread(source, path, kind) for source, path in sources]
        if not any(unread):
            return []
        spark = self.run.lake.spark
        whole = [new_deliveries(spark, source, path, None, 0) for source, path in sources]
        fresh = [{delivered.path for delivered in found} for found in unread]
        are_new = [d.path in new for found, new in zip(whole, fresh, strict=True) for d in found]
        new_come_last = are_new == sorted(are_new)
        merged = []
        for (source, _), found in zip(sources, unread if new_come_last else whole, strict=True):
            # A table of items is one of what is known now: its newest version is read whole.
            numbered = [
                replace(delivered, source=self.next_number + n, since=None)
                for n, delivered in enumerate(found)
            ]
            self._note(numbered, kind, settings_hash(source))
            merged += [(source, numbered)] if numbered else []
        return merged

    def is_changed(self, source: Source | CandidateSource, path: str, kind: str) -> bool:
        """Tell whether anything of a source is new."""
        return bool(self._unread(source, path, kind))

    def all(self, source: Source | CandidateSource, path: str, kind: str) -> list[Delivered]:
        """Return all of a source, and note that it is read."""
        found = new_deliveries(self.run.lake.spark, source, path, None, self.next_number)
        self._note(found, kind, settings_hash(source))
        return found

    def _unread(self, source: Source | CandidateSource, path: str, kind: str) -> list[Delivered]:
        known = None
        if self.run.has("files"):
            known = self.run.read("files").where(F.col("kind") == kind)
            if kind != "events":
                # Events are events, however they are read; what else is delivered is read again
                # when the settings of its source change.
                known = known.where(F.col("settings") == settings_hash(source))
        return new_deliveries(self.run.lake.spark, source, path, known, self.next_number)

    def _note(self, found: list[Delivered], kind: str, how: str) -> None:
        if found:
            self.next_number = found[-1].source + 1
            self.rows.append(ledger_rows(self.run.lake.spark, found, kind, how))


def _read_events(job: Job, deliveries: _Deliveries) -> None:
    accepted, repeats = 0, 0
    for source in job.config.events.sources:
        new = deliveries.new(source, job.config.locate(source))
        if new:
            good, repeated = _read_source(job, source, new)
            accepted, repeats = accepted + good, repeats + repeated
    rejected: dict[str, int] = {}
    examples: dict[str, str] = {}
    if job.run.rows_written("quarantine"):
        own = job.run.read("quarantine").where(F.col("run_id") == job.run.run_id)
        rejected, examples = ingest.count(own)
    if repeats:
        rejected[ingest.DUPLICATE] = repeats
    ingest.Counts(accepted, rejected, examples).require(job.config.events.max_reject_share)
    job.run.details |= {_ACCEPTED: str(accepted), _REJECTED: json.dumps(rejected)}
    _require_expected(job, accepted, rejected)
    level = logging.WARNING if rejected else logging.INFO
    log.log(level, "events read", extra={"accepted": accepted, **rejected})


def _require_expected(job: Job, accepted: int, rejected: dict[str, int]) -> None:
    """Hold what is delivered against ``events.expect``."""
    expect, before = job.config.events.expect, job.run.finished_runs("ingest")
    require_rows(expect, accepted)
    newest = max((run.details[_NEWEST] for run in before if _NEWEST in run.details), default=None)
    if accepted and expect.max_age_hours is not None:
        own = job.run.read("events").where(F.col("run_id") == job.run.run_id)
        latest = own.agg(F.date_format(F.max("timestamp"), _FORM)).collect()[0][0]
        newest = max(filter(None, (newest, latest)), default=None)
    if newest is not None:
        job.run.details[_NEWEST] = newest
    moment = datetime.fromisoformat(newest).replace(tzinfo=UTC) if newest else None
    require_fresh(expect, moment, job.run.started_at)
    earlier = [
        _shares(int(run.details[_ACCEPTED]), json.loads(run.details[_REJECTED]))
        for run in before
        if _ACCEPTED in run.details
    ]
    for what, share in _shares(accepted, rejected).items():
        require_usual(expect, what, share, [found[what] for found in earlier if found])


def _shares(accepted: int, rejected: dict[str, int]) -> dict[str, float]:
    """Return shares of what was delivered; none where nothing was."""
    total, duplicates = accepted + sum(rejected.values()), rejected.get(ingest.DUPLICATE, 0)
    bad = sum(rejected.values()) - duplicates
    return {"rejected": bad / total, "duplicates": duplicates / total} if total else {}


def _read_source(job: Job, source: EventSource, new: Sequence[Delivered]) -> tuple[int, int]:
    """Write what is new of a source; return the accepted rows, and those that repeat an event.

    Rows are written before it is known which of them repeat an event: that is told by what was
    written, from which these are deleted. What was delivered is read once, and again only to put
    rows aside as they were.
    """
    run, columns = job.run, source.columns
    rows = read_rows(
        job.spark,
        source,
        new,
        ingest.columns_read(source),
        work=join(job.work_folder, f"added-{new[0].source}"),
        nested=columns.context,
        numbers=[columns.weight] if columns.weight else [],
        dates=[columns.timestamp] if columns.timestamp and not source.has_unit else [],
    )
    now = run.started_at.astimezone(UTC).replace(tzinfo=None)
    parsed = ingest.parse(rows, source, job.config.events, now=now)
    rejected = Observation()
    counted = parsed.drop(RAW).observe(rejected, F.count(REASON).alias("rows"))
    earlier = run.read("events") if run.rows_before("events") else None
    written = job.write("events", counted.where(F.col(REASON).isNull()).drop(REASON), "append")
    added = run.read("events").where(
        (F.col("run_id") == run.run_id) & (F.col("source") >= new[0].source)
    )
    has_times = columns.timestamp is not None
    repeated = job.persist(ingest.duplicates(added, earlier, has_times=has_times))
    kept, repeats = written, added.limit(0)
    if not repeated.isEmpty():
        shared = job.persist(ingest.told_apart(added.drop("run_id"), repeated))
        again = shared.where("repeats")
        kept -= again.count()
        repeats = again.orderBy("source", "line").limit(ingest.KEPT_DUPLICATES)
        first, ids = shared.where("not repeats").drop("repeats"), repeated.select("event_id")
        run.replace("events", first, gone=ids, own=F.col("source") >= new[0].source)
    if rejected.get["rows"] or kept < written:
        _put_aside(job, ingest.rejects(parsed, repeats), "source", "line", new)
    return kept, written - kept


def _put_aside(
    job: Job, rejected: DataFrame, source: str, line: str, new: Sequence[Delivered]
) -> None:
    """Write rejected rows (_raw, _reason, and their place) to ``quarantine``."""
    rows = rejected.select(RAW, REASON, F.col(source).alias("source"), F.col(line).alias("line"))
    job.write("quarantine", ingest.quarantined(rows, _paths(job, new)), "append")


def _paths(job: Job, new: Sequence[Delivered]) -> DataFrame:
    rows = [(delivered.source, delivered.path) for delivered in new]
    return job.spark.createDataFrame(rows, "source int, path string")


def _read_entities(job: Job, deliveries: _Deliveries) -> None:
    """Extend what is known of items and users by what is new; tables are written if any is."""
    for kind, sources in (("items", job.config.items), ("users", job.config.users)):
        located = [(source, job.config.locate(source)) for source in sources]
        found = job.read(kind) if job.run.rows_before(kind) else None
        new = deliveries.to_merge(located, kind)
        for source, delivered in new:
            found = entities.merged(found, _read_entity(job, source, delivered), kind[:-1])
        if new and found is not None:
            job.write(kind, found)


def _read_entity(job: Job, source: Source, new: Sequence[Delivered]) -> DataFrame:
    assert isinstance(source, ItemSource | UserSource)
    work = join(job.work_folder, f"added-{new[0].source}")
    if isinstance(source, ItemSource):
        key, column, columns = "item", source.item, entities.item_columns(source)
    else:
        key, column, columns = "user", source.user, entities.user_columns(source)
    others = [name for name in columns if name != column]
    rows = read_rows(job.spark, source, new, columns, work=work, nested=others)
    rows = job.persist(entities.with_reason(rows, key, column))
    _report(job, rows, f"{key} with an id", new)
    return (
        entities.items(rows, source)
        if isinstance(source, ItemSource)
        else entities.users(rows, source)
    )


def _read_candidates(job: Job, deliveries: _Deliveries) -> None:
    """Write the candidate lists anew if any of their files is new."""
    sources = job.config.candidates
    if not any(
        deliveries.is_changed(source, job.config.locate(source), "candidates") for source in sources
    ):
        return
    lists = []
    for source in sources:
        found = deliveries.all(source, job.config.locate(source), "candidates")
        lines = job.persist(entities.with_form(read_lines(job.spark, source, found)))
        _report(job, lines, "list of the form '(user,item)<tab>candidate<tab>…'", found)
        lists.append(entities.candidate_lists(lines))
    job.write("candidate_lists", reduce(DataFrame.unionByName, lists))


def _report(job: Job, judged: DataFrame, what: str, new: Sequence[Delivered]) -> None:
    """Put rejected rows aside and tell how many there are.

    Raises
    ------
    SourceError
        If a file has no other.
    """
    rejected = entities.require_some(judged, _paths(job, new), what)
    if rejected:
        _put_aside(job, judged.where(F.col(REASON).isNotNull()), SOURCE, "_line", new)
        log.warning(f"rows that are no {what} are put aside", extra=rejected)


INGEST = Stage(
    "ingest",
    "Read new events, items, users and candidate lists; put bad rows in quarantine.",
    reads=("files", "events", "items", "users"),
    writes=("files", "events", "quarantine", "items", "users", "candidate_lists"),
    settings=("events", "items", "users", "candidates", "data", "folder"),
    work=run_ingest,
    shared=True,
)
