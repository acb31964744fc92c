"""Runs: the commit point of stages whose outputs are several Delta tables.

A stage opens a :class:`Run`, reads its inputs at the versions committed when it began, writes its
outputs, and commits by one row in ``runs`` (:mod:`recs.ledger`). Until that row is there nothing it
wrote is read; its rerun puts the tables back to what is committed and starts over. Of two runs that
commit at once, one sees the other's row first, and fails if they share an output.

Every commit to a table bears the mark of its attempt, which no other attempt has, so that a run
tells its own writes from those of any other, be it an attempt of its own that was given up. Commits
that keep a table's rows as they are (OPTIMIZE, VACUUM, properties) may be anybody's, at any time.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from types import TracebackType
from typing import Any

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

import recs
from recs.attempts import Attempt
from recs.errors import tell
from recs.lake import Commit, Lake, LakeError, VersionGone, Write, restored
from recs.ledger import RUNS, ConcurrentRun, Finished, Ledger, label, maker
from recs.storage import redact_text
from recs.usage import Peaks, versions

log = logging.getLogger("recs")


class MissingTable(LakeError):
    """No finished run has written the table."""


def new_run_id() -> str:
    """Return an id that sorts by time: UTC seconds and six random hex digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def _these(noun: str, names: list[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names)}"


@dataclass
class _Output:
    """What a run has done to one table: the committed content, and its own commits.

    ``base`` is the newest version that has the committed content, ``opened`` the version that the
    run began to write upon, ``first`` the first that may be its own.
    """

    base: int
    first: int
    opened: int
    last: int
    writes: int = 0
    rows: int = 0
    bytes: int = 0
    overwritten: bool = False
    put_back: bool = False


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
    part
        Model that the stage is of, where it is of one.
    settings
        The settings, as JSON.
    shared
        True for stages whose outputs serve both modes.
    rebuild
        True to make everything anew, whatever the stage's last run did.
    reads, writes
        The tables that the stage declares to read and to write; None: it may any.
    take_over
        True to go on where another attempt at the stage is at work, which then cannot commit.

    Raises
    ------
    recs.attempts.AtWork
        On entering, if another attempt at the stage (and part) is at work.
    """

    lake: Lake
    stage: str
    run_id: str
    config_hash: str
    part: str | None = None
    settings: str = "{}"
    shared: bool = False
    rebuild: bool = False
    reads: Collection[str] | None = None
    writes: Collection[str] | None = None
    take_over: bool = False
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
        self.ledger = Ledger(self.lake)
        self._attempt = Attempt(
            self.lake.location,
            self._mode,
            self.run_id,
            label(self.stage, self.part),
            None if self.writes is None else [self.lake.key(name) for name in self.writes],
        )
        # What others commit from now on is not of this stage, unless they take it over.
        self._attempt.begin(take_over=self.take_over)
        try:
            self.lake.create(RUNS)
            self._rows = self.ledger.rows()
            self._committed = self.ledger.versions(self._rows)
            self._peaks = Peaks.begin(self.lake.spark)
        except BaseException:
            self._attempt.end()
            raise
        this = self.run_id, self.stage, self.part, self._mode
        for row in self._rows:
            if (row["run_id"], row["stage"], row["part"], row["mode"]) == this:
                self._attempt.number = max(self._attempt.number, row["attempt"] + 1)
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

    def finished_runs(self, stage: str, part: str | None = None) -> list[Finished]:
        """Return the runs of a stage that had finished when this run began, oldest first."""
        return self.ledger.finished(stage, part, self._rows)

    def newest(
        self, stage: str, part: str | None = None, *, run_id: str | None = None
    ) -> Finished | None:
        """Return the newest of :meth:`finished_runs` (or that of ``run_id``)."""
        return self.ledger.newest(stage, part, run_id=run_id, rows=self._rows)

    def has(self, name: str) -> bool:
        """Tell whether a finished run has written the table."""
        self._hold_to_reads(name)
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
        return self._load(name, self._note_input(name))

    def _load(self, name: str, version: int) -> DataFrame:
        return self.lake.load(name, self.ledger.readable(name, version, self._rows))

    def _note_input(self, name: str) -> int:
        """Return the version at which a table is read, which the run keeps."""
        self._hold_to_reads(name)
        key = self.lake.key(name)
        if key not in self._committed:
            raise MissingTable(
                f"table {self.lake.address(name)} has not been written by a finished run: "
                f"run the stage that makes {name!r} first"
            )
        return self._inputs.setdefault(key, self._committed[key])

    def _hold_to_reads(self, name: str) -> None:
        """Refuse what the stage does not declare: others order stages by what they declare."""
        if self.reads is not None and name not in {*self.reads, *(self.writes or ())}:
            raise RuntimeError(f"stage {self.stage} reads {name} and does not declare it")

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
        self._hold_to_reads(name)
        last, key = self.newest(stage), self.lake.key(name)
        if last is None or key not in last.inputs:
            raise MissingTable(
                f"no finished run of the stage {stage} has read {self.lake.address(name)}: "
                f"run the stage {stage} first"
            )
        version = self._inputs.setdefault(key, last.inputs[key])
        assert version == last.inputs[key], f"{name} has been read at another version before"
        return self._load(name, version)

    def _last(self) -> Finished | None:
        """Return the stage's last run, if this one may build upon it."""
        last = self.newest(self.stage, self.part)
        alike = last is not None and last.config_hash == self.config_hash
        return last if alike and not self.rebuild else None

    def read_new(self, name: str) -> DataFrame | None:
        """Return the rows of a table that came after the version that the stage's last run read.

        Up to the version that this run reads. None where the stage cannot build upon its last run:
        it never ran in this mode, or had other settings, or the table was overwritten
        since; or a rebuild is asked for. Then everything is to be made anew.
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

        Directly, or by way of tables between them; both are of the lake's mode. None of a table
        that is not there, or not made of it.
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
        return maker(self._rows, key, version)

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
        return [*chain.from_iterable(earlier), label(maker["stage"], maker["part"])]

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
        output = self._open_output(name, how)
        options = {"userMetadata": self._mark}
        self.lake.save(name, df, how, run_id=self.run_id, options=options)
        added = 0
        for commit in self._own_commits(name, after=output.last):
            output.last, added = commit.version, commit.rows
            output.bytes += commit.bytes
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
            output.bytes += commit.bytes
            if own is not None:
                output.rows -= commit.deleted
        return self.write(name, df, "append")

    def write_all(self, tables: Mapping[str, DataFrame], how: Write = "overwrite") -> None:
        """Write several tables at once, as :meth:`write` does; small ones cost mostly waiting."""
        for name in tables:
            self._open_output(name, how)
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

    def keep_finished_rows(self, name: str) -> None:
        """Delete from a table as it is found the rows of runs that did not finish.

        Of a table that is only ever added to, the rows that stay are those that were committed,
        though their files at that version may be gone.
        """
        output, key = self._open_output(name, "overwrite"), self.lake.key(name)
        finished = [
            row["run_id"]
            for row in self._rows
            if row["state"] == "finished" and key in row["outputs"]
        ]
        run_ids = self.lake.load(name, output.last).select("run_id").distinct()
        with self.lake.commit_metadata(self._mark):
            self.lake.delete(name, run_ids.where(~F.col("run_id").isin(finished)))
        for commit in self._own_commits(name, after=output.last):
            output.last = commit.version

    def _open_output(self, name: str, how: Write = "append") -> _Output:
        """Make or migrate the table, after putting back what an unfinished run left in it.

        What is to be overwritten is left as it is found.

        Raises
        ------
        VersionGone
            If what is committed cannot be put back.
        """
        if name in self._outputs:
            return self._outputs[name]
        if self.writes is not None and name not in self.writes:
            raise RuntimeError(f"stage {self.stage} writes {name} and does not declare it")
        base, as_found = self._committed.get(self.lake.key(name), 0), True
        with self.lake.commit_metadata(self._mark):
            found = self.lake.newest(name)
            if found not in (None, base):
                base, as_found = self.lake.same_content(name, base)
                found = base if as_found else found  # more may have been committed since
            first = (base if found is None else found) + 1
            put_back = not as_found and how != "overwrite"
            if put_back:
                self.lake.restore(name, base)
            altered = self.lake.create(name)
        if found is None or altered or not as_found:
            found = self.lake.newest(name)
        assert found is not None
        self._outputs[name] = _Output(base, first, opened=found, last=found, put_back=put_back)
        return self._outputs[name]

    def _own_commits(self, name: str, after: int) -> list[Commit]:
        commits = self.lake.commits(name, after)
        return [commit for commit in commits if commit.mark == self._mark]

    # -- commit ---------------------------------------------------------------------------------

    def _commit(self) -> None:
        row = self._row("finished")
        self.ledger.append(row, self._check_outputs)
        self.finished = Finished.of(row)

    def _check_outputs(self, rows: list[Row]) -> None:
        """Refuse the commit if another run committed or wrote any output since this one began."""
        if self._attempt.is_taken_over():
            raise ConcurrentRun(
                f"another run has taken over {label(self.stage, self.part)} from run {self.run_id}"
            )
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
                amid = commit.version <= output.last
                if amid and commit.mark != self._mark and not commit.keeps_content:
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
            changed = [commit for commit in commits if not commit.keeps_content]
            mine = bool(changed) and changed[-1].mark == self._mark
            if mine and not self._overtaken(name, committed):
                before = self._committed.get(self.lake.key(name), 0)
                with self.lake.commit_metadata(restored(before)):
                    self._put_back(name, output.base)
        message = redact_text(tell(error).message)[:2000]
        failed = self._row("failed") | {"outputs": {}, "error": message}
        self.ledger.append(failed)

    def _put_back(self, name: str, version: int) -> None:
        try:
            self.lake.restore(name, version)
        except VersionGone as error:  # the failure itself is what is to be told
            log.warning("%s", error)

    def _named(self, name: str) -> int:
        """Return the version that the run names of an output: that committed, if it is unchanged.

        Whoever has read it is not to read it again for what others have put together since.
        """
        output = self._outputs[name]
        committed = self._committed.get(self.lake.key(name))
        changed = output.last != output.opened or output.overwritten or output.put_back
        return output.last if changed or committed is None else committed

    def _row(self, state: str) -> dict[str, Any]:
        key = self.lake.key
        return {
            "run_id": self.run_id,
            "stage": self.stage,
            "part": self.part,
            "attempt": self.attempt,
            "mode": self._mode,
            "state": state,
            "config_hash": self.config_hash,
            "code_version": recs.__version__,
            "inputs": dict(self._inputs),
            "outputs": {key(name): self._named(name) for name in self._outputs},
            "rows": {key(name): output.rows for name, output in self._outputs.items()},
            "overwritten": [key(name) for name, out in self._outputs.items() if out.overwritten],
            "details": dict(self.details),
            "started_at": self.started_at,
            "seconds": time.monotonic() - self._started,
            "error": None,
            "settings": redact_text(self.settings),
            "versions": versions(self.lake.spark),
            "bytes": {key(name): output.bytes for name, output in self._outputs.items()},
            "memory": self._peaks.read(),
        }
