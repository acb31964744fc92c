"""Runs: the commit point of stages whose outputs are several Delta tables.

A stage opens a :class:`Run`, reads its inputs at the versions committed when it began, writes its
outputs, and commits by one row in ``runs``. Until that row is there nothing it wrote is read;
its rerun puts the tables back to what is committed and starts over. Rows of ``runs`` are numbered
without gaps and written under ``txnVersion = sequence``, which makes the append a compare-and-swap:
of two runs that commit at once one sees the other's row first, and fails if they share an output.

Every commit to a table bears the mark of its attempt, which no other attempt has, so that a run
tells its own writes from those of any other, be it an attempt of its own that was given up.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from types import TracebackType
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

import recs
from recs.attempts import Attempt
from recs.errors import tell
from recs.lake import Commit, Lake, LakeError, Write
from recs.schema import TABLES, Mode
from recs.storage import redact_text

log = logging.getLogger("recs")

_LEDGER_TXN = "recs.runs"
_COMMIT_TRIES = 20


class MissingTable(LakeError):
    """No finished run has written the table."""


class ConcurrentRun(LakeError):
    """Another run committed, or wrote into, a table that this run writes."""


def new_run_id() -> str:
    """Return an id that sorts by time: UTC seconds and six random hex digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Finished:
    """A finished run of a stage, as consumers see it."""

    run_id: str
    stage: str
    mode: Mode
    config_hash: str
    code_version: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    rows: dict[str, int]
    details: dict[str, str]
    seconds: float


class Ledger:
    """The table ``runs``, read whole: it grows with runs, a few a stage and day."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake

    def rows(self) -> list[Row]:
        """Return the ledger in order of sequence; empty where no run has ended yet."""
        newest = self.lake.newest("runs")
        if newest is None:
            return []
        if self.lake.ledger is None or self.lake.ledger[0] != newest:
            found = self.lake.load("runs", newest).collect()
            self.lake.ledger = newest, sorted(found, key=lambda row: row["sequence"])
        return self.lake.ledger[1]

    def versions(self, rows: list[Row] | None = None) -> dict[str, int]:
        """Return table key → Delta version named by the newest finished run that wrote it."""
        versions: dict[str, int] = {}
        for row in self.rows() if rows is None else rows:
            if row["state"] == "finished":
                versions |= row["outputs"]
        return versions

    def finished(self, stage: str, rows: list[Row] | None = None) -> list[Finished]:
        """Return the finished runs of a stage in the lake's mode, oldest first."""
        return [
            Finished(**{name: row[name] for name in Finished.__dataclass_fields__})
            for row in (self.rows() if rows is None else rows)
            if (row["stage"], row["state"]) == (stage, "finished")
            and row["mode"] in (self.lake.mode, "both")
        ]

    def newest(
        self, stage: str, run_id: str | None = None, rows: list[Row] | None = None
    ) -> Finished | None:
        """Return the newest finished run of a stage in the lake's mode (or that of ``run_id``)."""
        runs = [run for run in self.finished(stage, rows) if run_id in (None, run.run_id)]
        return runs[-1] if runs else None

    def append(
        self, row: dict[str, Any], check: Callable[[list[Row]], None] = lambda rows: None
    ) -> None:
        """Append a row, numbered as the ledger's next; ``check`` sees the rows before it.

        Raises
        ------
        ConcurrentRun
            What ``check`` raises; or when other runs won the append again and again.
        """
        for _ in range(_COMMIT_TRIES):
            rows = self.rows()
            read = -1 if self.lake.ledger is None else self.lake.ledger[0]
            check(rows)
            sequence = rows[-1]["sequence"] + 1 if rows else 0
            token = secrets.token_hex(8)
            numbered = {**row, "sequence": sequence}
            failure = None
            try:
                self._write(self._row_as_df(numbered), sequence, token)
            except PySparkException as error:
                failure = error
            # A lost race is an exception or, when the winner was already there, a dropped write;
            # and a row may be there although something after its commit has failed.
            commits = self.lake.commits("runs", after=read)
            if any(commit.mark == token for commit in commits):
                if len(commits) == 1:
                    self.lake.ledger = commits[0].version, [*rows, _as_read(numbered)]
                return
            if failure is not None and "ConcurrentTransaction" not in str(failure):
                raise failure
        raise ConcurrentRun(
            f"run {row['run_id']} lost the commit to other runs {_COMMIT_TRIES} times: "
            "start it again when the lake is quieter"
        )

    def _row_as_df(self, row: dict[str, Any]) -> DataFrame:
        # By way of JSON the row is made in the JVM; rows of Python objects cost a Python task.
        schema = ", ".join(f"{c.name} {c.type}" for c in TABLES["runs"].all_columns)
        text = F.lit(json.dumps(row, default=lambda value: value.isoformat()))
        one = self.lake.spark.range(0, 1, 1, 1)
        return one.select(F.from_json(text, schema).alias("row")).select("row.*")

    def _write(self, row: DataFrame, sequence: int, token: str) -> None:
        options = {
            "txnAppId": _LEDGER_TXN,
            "txnVersion": str(sequence + 1),
            "userMetadata": token,
        }
        self.lake.save("runs", row, "append", options=options)


def _restored(version: int) -> str:
    """Return the mark of a commit that puts a table's content back to a version."""
    return f"recs restored {version}"


def _these(noun: str, names: list[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _as_read(row: dict[str, Any]) -> Row:
    """Return a row of the ledger as Spark collects it: times are those of this machine's zone."""
    values = {column.name: row[column.name] for column in TABLES["runs"].all_columns}
    started_at = row["started_at"].astimezone().replace(tzinfo=None)
    return Row(**{**values, "started_at": started_at})


@dataclass
class _Output:
    """What a run has done to one table: the committed version, and its own commits.

    ``opened`` is the version that it began to write upon, ``first`` the first that is its own.
    """

    base: int
    first: int
    opened: int
    last: int
    writes: int = 0
    rows: int = 0
    overwritten: bool = False


@dataclass
class Run:
    """One attempt at one stage. Use as a context manager; leaving the block commits.

    An exception puts the tables back and writes a row of state ``failed``; a killed process leaves
    both to the rerun.

    Parameters
    ----------
    lake
        The lake.
    stage
        Name of the stage.
    run_id
        Id of the run; a rerun with the same id is a further attempt.
    config_hash
        Hash of the settings that the stage reads.
    shared
        True for stages whose outputs serve both modes.
    rebuild
        True to make everything anew, whatever the stage's last run did.
    """

    lake: Lake
    stage: str
    run_id: str
    config_hash: str
    shared: bool = False
    rebuild: bool = False
    details: dict[str, str] = field(default_factory=dict)
    _outputs: dict[str, _Output] = field(default_factory=dict)
    _inputs: dict[str, int] = field(default_factory=dict)
    _committed: dict[str, int] = field(default_factory=dict)
    started_at: datetime = datetime.min
    _started: float = 0.0
    _cleanups: list[Callable[[], None]] = field(default_factory=list)
    #: What the run committed; None until then.
    finished: Finished | None = None

    def __enter__(self) -> Run:
        self._started = time.monotonic()
        self.started_at = datetime.now(UTC)
        self.lake.create("runs")
        self.ledger = Ledger(self.lake)
        self._rows = self.ledger.rows()
        self._committed = self.ledger.versions(self._rows)
        self._attempt = Attempt(self.lake.location, self._mode, self.run_id, self.stage)
        ended = [
            row["attempt"]
            for row in self._rows
            if (row["run_id"], row["stage"], row["mode"]) == (self.run_id, self.stage, self._mode)
        ]
        self._attempt.begin(max(ended, default=0))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                try:
                    self._commit()
                except BaseException as failure:
                    self._abandon(failure)
                    raise
            else:
                self._abandon(error)
        finally:
            cleanups = self._cleanups if self.finished else []
            for cleanup in (*cleanups, self._attempt.end):
                try:
                    cleanup()
                except Exception as failure:  # what is committed is no failure
                    log.warning("what run %s leaves is not removed: %s", self.run_id, failure)

    @property
    def attempt(self) -> int:
        """Number of this attempt at the stage of the run: 1, 2, …"""
        return self._attempt.number

    @property
    def work_folder(self) -> str:
        """Folder of working files of this attempt alone; removed when it ends."""
        return self._attempt.folder

    # -- reading --------------------------------------------------------------------------------

    def finished_runs(self, stage: str) -> list[Finished]:
        """Return the runs of a stage that had finished when this run began, oldest first."""
        return self.ledger.finished(stage, self._rows)

    def newest(self, stage: str, run_id: str | None = None) -> Finished | None:
        """Return the newest of :meth:`finished_runs` (or that of ``run_id``)."""
        return self.ledger.newest(stage, run_id, self._rows)

    def has(self, name: str) -> bool:
        """Tell whether a finished run has written the table."""
        return self.lake.key(name) in self._committed

    def read(self, name: str) -> DataFrame:
        """Return the table at the version committed when the run began, or as the run wrote it.

        A table that was read as of another stage stays at that version.

        Raises
        ------
        MissingTable
            If no finished run wrote it.
        """
        if name in self._outputs:
            return self.lake.load(name, self._outputs[name].last)
        return self.lake.load(name, self._note_input(name))

    def _note_input(self, name: str) -> int:
        """Return the version at which a table is read, which the run keeps."""
        key = self.lake.key(name)
        if key not in self._committed:
            raise MissingTable(
                f"table {self.lake.address(name)} has not been written by a finished run: "
                f"run the stage that makes {name!r} first"
            )
        return self._inputs.setdefault(key, self._committed[key])

    @property
    def inputs(self) -> dict[str, int]:
        """Version of each table read so far, by key."""
        return dict(self._inputs)

    def read_as_of(self, stage: str, name: str) -> DataFrame:
        """Return the table at the version that the newest finished run of another stage has read.

        For a table that is joined with what that stage made of it: what was committed since is in
        the one and not in the other. It waits until that stage has run again.

        Raises
        ------
        MissingTable
            If no finished run of the stage has read the table.
        """
        last, key = self.newest(stage), self.lake.key(name)
        if last is None or key not in last.inputs:
            raise MissingTable(
                f"no finished run of the stage {stage} has read {self.lake.address(name)}: "
                f"run the stage {stage} first"
            )
        version = self._inputs.setdefault(key, last.inputs[key])
        assert version == last.inputs[key], f"{name} has been read at another version before"
        return self.lake.load(name, version)

    def _last(self) -> Finished | None:
        """Return the stage's last run, if this one may build upon it."""
        last = self.newest(self.stage)
        alike = last is not None and (last.config_hash, last.code_version) == (
            self.config_hash,
            recs.__version__,
        )
        return last if alike and not self.rebuild else None

    def read_new(self, name: str) -> DataFrame | None:
        """Return the rows of a table that came after the version that the stage's last run read.

        Up to the version that this run reads. None where the stage cannot build upon its last run:
        it never ran in this mode, or had other settings or another version of recs, or the table
        was overwritten since; or a rebuild is asked for. Then everything is to be made anew.
        """
        rows = self.read(name)
        last, key = self._last(), self.lake.key(name)
        if last is None or key not in last.inputs:
            return None
        since = [
            row
            for row in self._rows
            if row["state"] == "finished"
            and last.inputs[key] < row["outputs"].get(key, -1) <= self._inputs[key]
        ]
        if any(key in row["overwritten"] for row in since):
            return None
        # Run ids sort by time, so that Delta skips files of earlier runs by their statistics.
        return rows.where(F.col("run_id").isin([row["run_id"] for row in since]))

    def unchanged(self, *names: str) -> bool:
        """Tell whether this stage's last run has read the very versions that this run reads.

        Then what it made of these tables stands: the run may :meth:`keep` its outputs.
        """
        versions = {self.lake.key(name): self._note_input(name) for name in names}
        last = self._last()
        return last is not None and versions.items() <= last.inputs.items()

    # -- generations ----------------------------------------------------------------------------

    def made_of(self, name: str, source: str) -> int | None:
        """Return the version of ``source`` that a committed table was made of.

        Directly, or by way of tables between them; both are tables of the lake's mode. None of a
        table that is not there, or not made of it.
        """
        key, source = self.lake.key(name), self.lake.key(source)
        return self._made_of(key, self._committed.get(key), source)

    def _made_of(self, key: str, version: int | None, source: str) -> int | None:
        maker = self._maker(key, version)
        if maker is None or source in maker["inputs"]:
            return None if maker is None else maker["inputs"][source]
        # Tables that both modes share are made of no table of one mode.
        between = [(k, v) for k, v in maker["inputs"].items() if "/" in k and k != key]
        found = (self._made_of(*table, source) for table in between)
        return next((version for version in found if version is not None), None)

    def _maker(self, key: str, version: int | None) -> Row | None:
        """Return the newest finished run that names a version of a table as its output."""
        for row in reversed(self._rows):
            if row["state"] == "finished" and row["outputs"].get(key, -1) == version:
                return row
        return None

    def require_one_generation(self, source: str, *tables: str) -> None:
        """Refuse tables that were made of another version of ``source`` than this run reads.

        Raises
        ------
        MissingTable
            If no finished run wrote one of them.
        LakeError
            If one was made of another version; tells the stages to run again, in order.
        """
        version = self._note_input(source)
        for name in tables:
            self._note_input(name)
            if self.made_of(name, source) == version:
                continue
            key, source_key = self.lake.key(name), self.lake.key(source)
            made, read = self._maker(key, self._committed[key]), self._maker(source_key, version)
            assert made is not None and read is not None
            again = list(dict.fromkeys(self._stages_behind(key, source_key, version)))
            raise LakeError(
                f"{source} are of run {read['run_id']}, but run {made['run_id']} made {name} of "
                f"others: run the {_these('stage', again)}"
            )

    def _stages_behind(self, key: str, source: str, version: int) -> list[str]:
        """Return the stages that make a table, from the first that read another version."""
        maker = self._maker(key, self._committed[key])
        assert maker is not None
        earlier = [
            self._stages_behind(k, source, version)
            for k in maker["inputs"]
            if "/" in k
            and k not in (key, source)
            and self._made_of(k, self._committed[k], source) not in (None, version)
        ]
        return [*chain.from_iterable(earlier), maker["stage"]]

    # -- writing --------------------------------------------------------------------------------

    def write(self, name: str, df: DataFrame, how: Write = "overwrite") -> int:
        """Write ``df`` with this run's id in one Delta commit and return its rows.

        An append of no rows leaves the table as it is: Delta makes no commit of it.

        Parameters
        ----------
        name
            Table; made if missing.
        df
            The table's columns but ``run_id``.
        how
            ``append``, or ``overwrite`` of the whole table.
        """
        output = self._open_output(name)
        options = {"userMetadata": self._mark}
        self.lake.save(name, df.withColumn("run_id", F.lit(self.run_id)), how, options=options)
        added = 0
        for commit in self._own_commits(name, after=output.last):
            output.last, added = commit.version, commit.rows
        output.writes += 1
        output.rows += added
        output.overwritten |= how == "overwrite"
        return added

    def replace(
        self, name: str, df: DataFrame, gone: DataFrame, *, own: Column | None = None
    ) -> int:
        """Write ``df`` in place of the rows that match a row of ``gone``; return its rows.

        Parameters
        ----------
        name
            Table; made if missing.
        df
            The table's columns but ``run_id``.
        gone
            One column of the table, its values unique and not null.
        own
            Where given, only rows that this run has written are replaced, of which it holds.
        """
        output = self._open_output(name)
        among = None if own is None else own & (F.col("run_id") == self.run_id)
        with self.lake.commit_metadata(self._mark):
            self.lake.delete(name, gone, among)
        for commit in self._own_commits(name, after=output.last):  # none where no row matches
            output.last = commit.version
            if own is not None:
                output.rows -= commit.deleted
        return self.write(name, df, "append")

    def write_all(self, tables: Mapping[str, DataFrame], how: Write = "overwrite") -> None:
        """Write several tables at once, as :meth:`write` does; small ones cost mostly waiting."""
        for name in tables:
            self._open_output(name)
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda name: self.write(name, tables[name], how), tables))

    def rows_before(self, name: str) -> bool:
        """Tell whether the table holds anything yet: committed, or written by this run."""
        return self.has(name) or self.rows_written(name)

    def rows_written(self, name: str) -> bool:
        """Tell whether this run has written to the table."""
        return name in self._outputs and self._outputs[name].writes > 0

    def after_commit(self, cleanup: Callable[[], None]) -> None:
        """Call ``cleanup`` once the run is committed; not if it fails."""
        self._cleanups.append(cleanup)

    def keep(self, name: str) -> None:
        """Make the table if it is missing and name its present version as an output."""
        self._open_output(name)

    @property
    def _mark(self) -> str:
        return f"recs {self.run_id} {self.stage} {self._attempt.token}"

    @property
    def _mode(self) -> str:
        return "both" if self.shared else self.lake.mode

    def _open_output(self, name: str) -> _Output:
        """Make or migrate the table, after putting back what an unfinished run left in it."""
        if name in self._outputs:
            return self._outputs[name]
        base = self._committed.get(self.lake.key(name), 0)
        with self.lake.commit_metadata(self._mark):
            found = self.lake.newest(name)
            if found not in (None, base) and not self._is_restored(name, found, base):
                self.lake.restore(name, base)
            altered = self.lake.create(name)
        newest = self.lake.newest(name) if altered or found != base else base
        assert newest is not None
        first = (base if found is None else found) + 1
        self._outputs[name] = _Output(base=base, first=first, opened=newest, last=newest)
        return self._outputs[name]

    def _is_restored(self, name: str, version: int, base: int) -> bool:
        """Tell whether a failed run has put a version's content back to what is committed."""
        return self.lake.commits(name, after=version - 1)[0].mark == _restored(base)

    def _own_commits(self, name: str, after: int) -> list[Commit]:
        commits = self.lake.commits(name, after)
        return [commit for commit in commits if commit.mark == self._mark]

    # -- commit ---------------------------------------------------------------------------------

    def _commit(self) -> None:
        row = self._row("finished")
        self.ledger.append(row, self._check_outputs)
        self.finished = Finished(**{name: row[name] for name in Finished.__dataclass_fields__})

    def _check_outputs(self, rows: list[Row]) -> None:
        """Refuse the commit if another run committed or wrote any output since this one began."""
        committed = self.ledger.versions(rows)
        befores = [output.first - 1 for output in self._outputs.values()]
        with ThreadPoolExecutor() as threads:
            histories = list(threads.map(self.lake.commits, self._outputs, befores))
        for (name, output), commits in zip(self._outputs.items(), histories, strict=True):
            if self._overtaken(name, committed):
                raise ConcurrentRun(
                    f"another run committed {self.lake.address(name)} while run {self.run_id} was "
                    "writing it: start this run again"
                )
            for commit in commits:
                if commit.version <= output.last and commit.mark != self._mark:
                    raise ConcurrentRun(
                        f"another run wrote version {commit.version} of "
                        f"{self.lake.address(name)} amid run {self.run_id}: start this run again"
                    )

    def _overtaken(self, name: str, committed: dict[str, int]) -> bool:
        key = self.lake.key(name)
        return committed.get(key) != self._committed.get(key)

    def _abandon(self, error: BaseException) -> None:
        """Put written tables back and note the failure; consumers never saw any of it."""
        committed = self.ledger.versions()
        for name, output in self._outputs.items():
            commits = self.lake.commits(name, after=output.opened)
            mine = bool(commits) and commits[-1].mark == self._mark
            if mine and not self._overtaken(name, committed):
                with self.lake.commit_metadata(_restored(output.base)):
                    self.lake.restore(name, output.base)
        message = redact_text(tell(error).message)[:2000]
        failed = self._row("failed") | {"outputs": {}, "error": message}
        self.ledger.append(failed)

    def _row(self, state: str) -> dict[str, Any]:
        key = self.lake.key
        return {
            "run_id": self.run_id,
            "stage": self.stage,
            "attempt": self.attempt,
            "mode": self._mode,
            "state": state,
            "config_hash": self.config_hash,
            "code_version": recs.__version__,
            "inputs": dict(self._inputs),
            "outputs": {key(name): output.last for name, output in self._outputs.items()},
            "rows": {key(name): output.rows for name, output in self._outputs.items()},
            "overwritten": [key(name) for name, out in self._outputs.items() if out.overwritten],
            "details": dict(self.details),
            "started_at": self.started_at,
            "seconds": time.monotonic() - self._started,
            "error": None,
        }
