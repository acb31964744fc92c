"""The ledger: table ``runs``, one row an ended attempt at a stage.

Rows are numbered without gaps and written under ``txnVersion = sequence``, which makes the append
a compare-and-swap: of two runs that commit at once one sees the other's row first.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Row

from recs.lake import Lake, LakeError
from recs.schema import TABLES, Mode

log = logging.getLogger("recs")

RUNS = "runs"
_TXN = "recs.runs"
_COMMIT_TRIES = 20
_LONGEST_PAUSE_SECONDS = 2.0
#: Each row is a file: of so many, one is made.
_ROWS_A_FILE = 64
#: What Delta says where another commit was first: a row, or somebody's properties or columns.
_OVERTAKEN = re.compile(r"Concurrent\w*Exception|DELTA_CONCURRENT|(Metadata|Protocol)Changed")


#: Files of a version stay for 30 days after others have taken their place; see recs.schema.
_FRESH = timedelta(days=7)


class ConcurrentRun(LakeError):
    """Another run committed, or wrote into, a table that this run writes, or does its stage."""


def label(stage: str, part: str | None) -> str:
    """Return a stage as people know it: ``split``, or ``fit/slim`` of a model."""
    return stage if part is None else f"{stage}/{part}"


def maker(rows: list[Row], key: str, version: int | None) -> Row | None:
    """Return the newest finished run that names a version of a table as its output."""
    for row in reversed(rows):
        if row["state"] == "finished" and row["outputs"].get(key, -1) == version:
            return row
    return None


@dataclass(frozen=True)
class Finished:
    """A finished run of a stage, as consumers see it; ``part`` is the model that it is of."""

    run_id: str
    stage: str
    part: str | None
    mode: Mode
    config_hash: str
    code_version: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    rows: dict[str, int]
    details: dict[str, str]
    seconds: float

    @classmethod
    def of(cls, row: Any) -> Finished:
        """Return what a row of the ledger tells."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


class Ledger:
    """The table ``runs``, read whole: it grows with runs, a few a stage and day."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake

    def rows(self) -> list[Row]:
        """Return the ledger in order of sequence; empty where no run has ended yet."""
        newest = self.lake.newest(RUNS)
        if newest is None:
            return []
        if self.lake.ledger is None or self.lake.ledger[0] != newest:
            found = self.lake.rows(RUNS, newest)
            self.lake.ledger = newest, sorted(found, key=lambda row: row["sequence"])
        return self.lake.ledger[1]

    def versions(self, rows: list[Row] | None = None) -> dict[str, int]:
        """Return table key → Delta version named by the newest finished run that wrote it."""
        versions: dict[str, int] = {}
        for row in self.rows() if rows is None else rows:
            if row["state"] == "finished":
                versions |= row["outputs"]
        return versions

    def readable(self, name: str, version: int, rows: list[Row] | None = None) -> int:
        """Return the version at which to read the content of a committed version of a table.

        Long after others have put its files together, these are removed; then the same rows are
        read from a version of today.
        """
        found = maker(self.rows() if rows is None else rows, self.lake.key(name), version)
        if found is None or datetime.now(UTC) - found["started_at"].astimezone(UTC) < _FRESH:
            return version
        return self.lake.same_content(name, version)[0]

    def finished(
        self, stage: str, part: str | None = None, rows: list[Row] | None = None
    ) -> list[Finished]:
        """Return the finished runs of a stage in the lake's mode, oldest first."""
        return [
            Finished.of(row)
            for row in (self.rows() if rows is None else rows)
            if (row["stage"], row["part"], row["state"]) == (stage, part, "finished")
            and row["mode"] in (self.lake.mode, "both")
        ]

    def newest(
        self,
        stage: str,
        part: str | None = None,
        *,
        run_id: str | None = None,
        rows: list[Row] | None = None,
    ) -> Finished | None:
        """Return the newest finished run of a stage in the lake's mode (or that of ``run_id``)."""
        runs = [run for run in self.finished(stage, part, rows) if run_id in (None, run.run_id)]
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
        for lost in range(_COMMIT_TRIES):
            rows = self.rows()
            read = -1 if self.lake.ledger is None else self.lake.ledger[0]
            check(rows)
            numbered = {**row, "sequence": rows[-1]["sequence"] + 1 if rows else 0}
            token = secrets.token_hex(8)
            failure = None
            try:
                self._write(numbered, token)
            except PySparkException as error:
                failure = error
            # A lost race is an exception or, when the winner was already there, a dropped write;
            # and a row may be there although something after its commit has failed.
            commits = self.lake.commits(RUNS, after=read)
            if any(commit.mark == token for commit in commits):
                if len(commits) == 1:
                    self.lake.ledger = commits[0].version, [*rows, _as_read(numbered)]
                self._tidy(numbered["sequence"])
                return
            if failure is not None and not _OVERTAKEN.search(str(failure)):
                raise failure
            time.sleep(random.uniform(0, min(_LONGEST_PAUSE_SECONDS, 0.05 * 2**lost)))
        raise ConcurrentRun(
            f"run {row['run_id']} lost the commit to other runs {_COMMIT_TRIES} times: "
            "start it again when the lake is quieter"
        )

    def _write(self, row: dict[str, Any], token: str) -> None:
        version = str(row["sequence"] + 1)
        options = {"txnAppId": _TXN, "txnVersion": version, "userMetadata": token}
        self.lake.save_row(RUNS, row, options)

    def _tidy(self, sequence: int) -> None:
        """Put small files together now and then; the ledger is read whole by every command."""
        if (sequence + 1) % _ROWS_A_FILE:
            return
        try:
            self.lake.compact(RUNS)
        except Exception as error:  # another run does it, or the next: the row is there
            log.info("the ledger is not compacted: %s", error)


def _as_read(row: dict[str, Any]) -> Row:
    """Return a row of the ledger as Spark collects it: times are those of this machine's zone."""
    values = {column.name: row[column.name] for column in TABLES[RUNS].all_columns}
    started_at = row["started_at"].astimezone().replace(tzinfo=None)
    return Row(**{**values, "started_at": started_at})
