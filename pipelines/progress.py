"""What a person sees while stages run, and what is logged."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PLAIN_EVERY_SECONDS = 15.0
_POLL_SECONDS = 0.5
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "run", "stage"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, run, stage, message and what was given as ``extra``."""

    def __init__(self) -> None:
        super().__init__()
        self.run_id: str | None = None
        self.stage: str | None = None

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        # Last, so that nothing given takes their place.
        fields |= {
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "level": record.levelname.lower(),
            "run": self.run_id,
            "stage": getattr(record, "stage", self.stage),
            "message": record.getMessage(),
        }
        return json.dumps(fields, default=str)


_FORMAT = JsonLines()


def set_up_logging(verbose: bool) -> None:
    """Send recs' log to stderr as JSON lines: warnings, and with ``verbose`` everything."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMAT)
    log = logging.getLogger("recs")
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.WARNING)
    log.propagate = False
    if not verbose:  # PySpark and py4j log what has failed whole, and then raise it as well
        logging.getLogger("DataFrameQueryContextLogger").setLevel(logging.CRITICAL)
        logging.getLogger().addFilter(_not_of_py4j)


def _not_of_py4j(record: logging.LogRecord) -> bool:
    return "py4j" not in record.pathname


class Progress:
    """Shows the stage at work: a bar of Spark tasks on a terminal, else plain lines.

    Parameters
    ----------
    spark
        The session; on Spark Connect, which tells nothing of tasks, only stages are shown.
    run_id
        Shown, and carried by every log line.
    stages
        How many stages will run.
    """

    def __init__(self, spark: SparkSession, run_id: str, stages: int) -> None:
        self._spark, self._stages, self._number = spark, stages, 0
        self._terminal = sys.stderr.isatty()
        _FORMAT.run_id = run_id
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tasks"),
            TimeElapsedColumn(),
        )
        self._bar = Bar(*columns, console=Console(stderr=True), disable=not self._terminal)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show one stage while the block runs."""
        self._number += 1
        _FORMAT.stage = name
        label = f"[{self._number}/{self._stages}] {name}"
        task = self._bar.add_task(label, total=None)
        started, ended = time.monotonic(), threading.Event()
        watcher = threading.Thread(target=self._watch, args=(label, task, ended), daemon=True)
        watcher.start()
        try:
            yield
            outcome = "done"
        except BaseException:
            outcome = "failed"
            raise
        finally:
            ended.set()
            watcher.join()
            seconds = time.monotonic() - started
            if self._terminal:
                done = int(self._bar.tasks[task].completed)
                self._bar.update(task, total=max(done, 1), completed=max(done, 1))
            else:
                print(f"{label}: {outcome} in {seconds:.1f} s", file=sys.stderr, flush=True)
            _FORMAT.stage = None

    def _watch(self, label: str, task: Any, ended: threading.Event) -> None:
        """Poll Spark's tasks until the stage ends; finished Spark stages count as done."""
        if not hasattr(self._spark, "_jsc"):  # Spark Connect
            return
        tracker = self._spark.sparkContext.statusTracker()
        finished = 0
        known: dict[int, tuple[int, int]] = {}
        printed = time.monotonic()
        while not ended.wait(_POLL_SECONDS):
            active = {}
            for stage_id in tracker.getActiveStageIds():
                info = tracker.getStageInfo(stage_id)
                if info is not None:
                    active[stage_id] = info.numCompletedTasks, info.numTasks
            finished += sum(
                total for stage_id, (_, total) in known.items() if stage_id not in active
            )
            known = active
            done = finished + sum(done for done, _ in active.values())
            total = finished + sum(total for _, total in active.values())
            self._bar.update(task, completed=done, total=total or None)
            if not self._terminal and time.monotonic() - printed > _PLAIN_EVERY_SECONDS:
                printed = time.monotonic()
                print(f"{label}: {done}/{total} tasks", file=sys.stderr, flush=True)
