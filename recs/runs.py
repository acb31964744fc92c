"""Runs: the commit point of stages whose outputs are several Delta tables.

A stage opens a :class:`Run`, reads its inputs at the versions committed when it began, writes its
outputs, and commits by one row in ``runs``. Until that row is there nothing it wrote is read;
its rerun puts the tables back to what is committed and starts over. Rows of ``runs`` are numbered
without gaps and written under ``txnVersion = sequence``, which makes the append a compare-and-swap:
of two runs that commit at once one sees the other's row first, and fails if they share an output.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

import recs
from recs.errors import tell
from recs.lake import Lake, LakeError, Write
from recs.schema import TABLES, Mode
from recs.storage import redact_text

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
        """Return the ledger in order of sequence; empty where no run was ever started."""
        if not self.lake.exists("runs"):
            return []
        version = int(self.lake.history("runs", 1)[0]["version"])
        if version != self.lake.ledger_version:
            found = self.lake.load("runs", version).collect()
            self.lake.ledger_rows = sorted(found, key=lambda row: row["sequence"])
            self.lake.ledger_version = version
        return self.lake.ledger_rows

    def versions(self, rows: list[Row] | None = None) -> dict[str, int]:
        """Return table key → Delta version named by the newest finished run that wrote it."""
        versions: dict[str, int] = {}
        for row in self.rows() if rows is None else rows:
            if row["state"] == "finished":
                versions |= row["outputs"]
        return versions

    def finished(self, stage: str) -> list[Finished]:
        """Return the finished runs of a stage in the lake's mode, oldest first."""
        return [
            Finished(**{name: row[name] for name in Finished.__dataclass_fields__})
            for row in self.rows()
            if (row["stage"], row["state"]) == (stage, "finished")
            and row["mode"] in (self.lake.mode, "both")
        ]

    def newest(self, stage: str, run_id: str | None = None) -> Finished | None:
        """Return the newest finished run of a stage in the lake's mode (or that of ``run_id``)."""
        runs = [run for run in self.finished(stage) if run_id in (None, run.run_id)]
        return runs[-1] if runs else None

    def append(
        self,
        row: dict[str, Any],
        check: Callable[[list[Row]], None] = lambda rows: None,
        rows: list[Row] | None = None,
    ) -> None:
        """Append a row, numbered as the ledger's next; ``check`` sees the rows before it.

        ``rows`` is the ledger as just read, where the caller has it.

        Raises
        ------
        ConcurrentRun
            What ``check`` raises; or when other runs won the append again and again.
        """
        for _ in range(_COMMIT_TRIES):
            rows = self.rows() if rows is None else rows
            check(rows)
            sequence = rows[-1]["sequence"] + 1 if rows else 0
            token = secrets.token_hex(8)
            written = self._row_as_df({**row, "sequence": sequence})
            try:
                self._write(written, sequence, token)
            except PySparkException as error:
                if "ConcurrentTransaction" not in str(error):
                    raise
            # A lost race is an exception or, when the winner was already there, a dropped write.
            commits = self.lake.history("runs", 20)
            if any(commit["userMetadata"] == token for commit in commits):
                newest = commits[0]
                if newest["userMetadata"] == token and len(rows) == sequence:
                    self.lake.ledger_rows = [*rows, *written.collect()]
                    self.lake.ledger_version = newest["version"]
                return
            rows = None
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


@dataclass
class _Output:
    """What a run has done to one table: the version it began from and its own commits."""

    base: int
    first: int
    last: int
    #: The version before the last write, and the rows that it wrote.
    before: int = -1
    added: int = 0
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
    attempt: int = 0
    _outputs: dict[str, _Output] = field(default_factory=dict)
    _inputs: dict[str, int] = field(default_factory=dict)
    _committed: dict[str, int] = field(default_factory=dict)
    started_at: datetime = datetime.min
    _started: float = 0.0
    _cleanups: list[Callable[[], None]] = field(default_factory=list)
    #: What the run committed; None until then.
    finished: Finished | None = None

    def __enter__(self) -> Run:
        self.lake.create("runs")
        self.ledger = Ledger(self.lake)
        self._started = time.monotonic()
        self.started_at = datetime.now(UTC)
        rows = self.ledger.rows()
        self._committed = self.ledger.versions(rows)
        self._rows = rows
        self.attempt = 1 + sum(
            (row["run_id"], row["stage"], row["state"]) == (self.run_id, self.stage, "started")
            for row in rows
        )
        # The row is for the rerun to count attempts by; it need only be there before any write.
        row = self._row("started")
        self._threads = ThreadPoolExecutor()
        self._noted = self._threads.submit(self.ledger.append, row, rows=rows)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._threads:
            if error is None:
                try:
                    self._noted.result()
                    self._commit()
                except BaseException as failure:
                    self._abandon(failure)
                    raise
            else:
                self._abandon(error)

    # -- reading --------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Tell whether a finished run has written the table."""
        return self.lake.key(name) in self._committed

    def read(self, name: str) -> DataFrame:
        """Return the table at the version committed when the run began, or as the run wrote it.

        Raises
        ------
        MissingTable
            If no finished run wrote it.
        """
        key = self.lake.key(name)
        if name in self._outputs:
            return self.lake.load(name, self._outputs[name].last)
        if key not in self._committed:
            raise MissingTable(
                f"table {self.lake.address(name)} has not been written by a finished run: "
                f"run the stage that makes {name!r} first"
            )
        self._inputs[key] = self._committed[key]
        return self.lake.load(name, self._committed[key])

    def read_as_of(self, stage: str, name: str) -> DataFrame:
        """Return a table at the version that the newest finished run of another stage has read."""
        last = self.ledger.newest(stage)
        key = self.lake.key(name)
        if last is None or key not in last.inputs:
            raise MissingTable(f"no finished run of {stage} has read {name!r}: run it first")
        self._inputs[key] = last.inputs[key]
        return self.lake.load(name, last.inputs[key])

    @property
    def inputs(self) -> dict[str, int]:
        """Version of each table read so far, by key."""
        return dict(self._inputs)

    def read_new(self, name: str) -> DataFrame | None:
        """Return the rows of a table that were committed since this stage's last run.

        None where the stage cannot build upon its last run: it never ran in this mode, or had other
        settings or another version of recs, or the table was overwritten since; or a rebuild is
        asked for. Then everything is to be made anew.
        """
        rows = self.read(name)
        last = self.ledger.newest(self.stage)
        key = self.lake.key(name)
        if (
            self.rebuild
            or last is None
            or (last.config_hash, last.code_version) != (self.config_hash, recs.__version__)
            or key not in last.inputs
        ):
            return None
        since = [
            row
            for row in self._rows
            if row["state"] == "finished" and row["outputs"].get(key, -1) > last.inputs[key]
        ]
        if any(key in row["overwritten"] for row in since):
            return None
        # Run ids sort by time, so that Delta skips files of earlier runs by their statistics.
        return rows.where(F.col("run_id").isin([row["run_id"] for row in since]))

    # -- writing --------------------------------------------------------------------------------

    def write(self, name: str, df: DataFrame, how: Write = "overwrite") -> int:
        """Write ``df`` with this run's id in one Delta commit and return its rows.

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
        options = {
            "txnAppId": f"{self.run_id}:{self.stage}:{self.lake.key(name)}",
            "txnVersion": str(self.attempt * 1_000_000 + output.writes),
            "userMetadata": self._mark,
        }
        self.lake.save(name, df.withColumn("run_id", F.lit(self.run_id)), how, options=options)
        commit = self._own_commit(name, after=output.last)
        output.before, output.last = output.last, commit["version"]
        rows = output.added = int(commit["operationMetrics"].get("numOutputRows", 0))
        output.writes += 1
        output.rows += rows
        output.overwritten |= how == "overwrite"
        return rows

    def take_back(self, name: str) -> None:
        """Put a table back to what it was before this run's last write to it."""
        output = self._outputs[name]
        with self.lake.commit_metadata(self._mark):
            self.lake.restore(name, output.before)
        output.last = self._own_commit(name, after=output.last)["version"]
        output.rows -= output.added
        output.added = 0

    def replace(self, name: str, df: DataFrame, gone: DataFrame) -> int:
        """Write ``df`` in place of the rows that match a row of ``gone``; return its rows.

        Parameters
        ----------
        name
            Table; made if missing.
        df
            The table's columns but ``run_id``.
        gone
            One column of the table, its values unique and not null.
        """
        output = self._open_output(name)
        with self.lake.commit_metadata(self._mark):
            self.lake.delete(name, gone)
        if self._newest(name) > output.last:  # where no row matches, Delta commits nothing
            output.last = self._own_commit(name, after=output.last)["version"]
        return self.write(name, df, "append")

    def write_all(self, tables: Mapping[str, DataFrame], how: Write = "overwrite") -> None:
        """Write several tables at once, as :meth:`write` does; small ones cost mostly waiting."""
        for name in tables:
            self._open_output(name)
        list(self._threads.map(lambda name: self.write(name, tables[name], how), tables))

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
        return f"recs {self.run_id} {self.stage} {self.attempt}"

    def _open_output(self, name: str) -> _Output:
        """Make or migrate the table, after putting back what an unfinished run left in it."""
        if name in self._outputs:
            return self._outputs[name]
        self._noted.result()
        base = self._committed.get(self.lake.key(name), 0)
        with self.lake.commit_metadata(self._mark):
            found = self._newest(name) if self.lake.exists(name) else None
            if found not in (None, base):
                self.lake.restore(name, base)
            altered = self.lake.create(name)
        moved = altered or found != base
        newest = self._newest(name) if moved else base
        first = (base if found is None else found) + 1
        self._outputs[name] = _Output(base=base, first=first, last=newest)
        return self._outputs[name]

    def _commits_since(self, name: str, first: int) -> list[Row]:
        commits = self.lake.history(name, 20)
        more = commits[0]["version"] - first + 1
        return commits if more <= len(commits) else self.lake.history(name, more)

    def _newest(self, name: str) -> int:
        return int(self.lake.history(name, 1)[0]["version"])

    def _own_commit(self, name: str, after: int) -> Row:
        for commit in self.lake.history(name, 20):
            if commit["version"] > after and commit["userMetadata"] == self._mark:
                return commit
        raise ConcurrentRun(
            f"the write of run {self.run_id} to {self.lake.address(name)} is not in its history: "
            "another run is writing the same table; start this run again when it has ended"
        )

    # -- commit ---------------------------------------------------------------------------------

    def _commit(self) -> None:
        row = self._row("finished")
        self.ledger.append(row, self._check_outputs)
        self.finished = Finished(**{name: row[name] for name in Finished.__dataclass_fields__})
        for cleanup in self._cleanups:
            cleanup()

    def _check_outputs(self, rows: list[Row]) -> None:
        """Refuse the commit if another run committed or wrote any output since this one began."""
        committed = self.ledger.versions(rows)
        firsts = [output.first for output in self._outputs.values()]
        histories = self._threads.map(self._commits_since, self._outputs, firsts)
        for (name, output), commits in zip(self._outputs.items(), histories, strict=True):
            if self._overtaken(name, committed):
                raise ConcurrentRun(
                    f"another run committed {self.lake.address(name)} while run {self.run_id} was "
                    "writing it: start this run again"
                )
            for commit in commits:
                between = output.first <= commit["version"] <= output.last
                if between and commit["userMetadata"] != self._mark:
                    raise ConcurrentRun(
                        f"another run wrote version {commit['version']} of "
                        f"{self.lake.address(name)} amid run {self.run_id}: start this run again"
                    )

    def _overtaken(self, name: str, committed: dict[str, int]) -> bool:
        key = self.lake.key(name)
        return committed.get(key) != self._committed.get(key)

    def _abandon(self, error: BaseException) -> None:
        """Put written tables back and note the failure; consumers never saw any of it."""
        committed = self.ledger.versions()
        for name, output in self._outputs.items():
            newest = self.lake.history(name, 1)[0]
            mine = newest["userMetadata"] == self._mark
            if output.writes and mine and not self._overtaken(name, committed):
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
            "mode": "both" if self.shared else self.lake.mode,
            "state": state,
            "config_hash": self.config_hash,
            "code_version": recs.__version__,
            "inputs": dict(self._inputs),
            "outputs": {key(name): output.last for name, output in self._outputs.items()},
            "rows": {key(name): output.rows for name, output in self._outputs.items()},
            "overwritten": [key(name) for name, out in self._outputs.items() if out.overwritten],
            "details": dict(self.details),
            "started_at": self.started_at,
            "seconds": None if state == "started" else time.monotonic() - self._started,
            "error": None,
        }
