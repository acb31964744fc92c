"""Run the pipeline in a process of its own in which something is killed, at one point of one stage.

``python -m tests.pipelines.killed POINT STAGE CONFIG OVERRIDE…``. Points: ``inside``, while Spark
writes the stage's first table, before Delta's commit; ``after`` the stage's commit; ``driver:S``,
S seconds after the stage has begun; ``worker:S``, one of Spark's Python workers from then on;
``never``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipelines.run import open_lake, run_stages, stages_of
from recs.config import load_config
from recs.ledger import label
from recs.runs import Run

#: What subprocess calls the end by SIGKILL.
KILLED = -signal.SIGKILL


def main() -> None:
    point, stage, file, *overrides = sys.argv[1:]
    point, _, seconds = point.partition(":")
    write, commit, enter = Run.write, Run._commit, Run.__enter__

    def enter_and_wait(run: Run) -> Run:
        if of(run) == stage and point in ("driver", "worker"):
            kill = die if point == "driver" else kill_a_worker
            threading.Timer(float(seconds), kill).start()
        return enter(run)

    def write_or_die(run: Run, *given: Any, **options: Any) -> int:
        if (point, stage) == ("inside", of(run)):
            threading.Timer(0.15, die).start()
        return write(run, *given, **options)

    def commit_or_die(run: Run) -> None:
        commit(run)
        if (point, stage) == ("after", of(run)):
            die()

    Run.__enter__ = enter_and_wait  # type: ignore[method-assign]
    Run.write = write_or_die  # type: ignore[assignment, method-assign]
    Run._commit = commit_or_die  # type: ignore[assignment, method-assign]
    config = load_config(file, overrides)
    run_stages(stages_of(config), config, open_lake(config))


def of(run: Run) -> str:
    return label(run.stage, run.part)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_a_worker() -> None:
    """Kill the first Python worker that runs; if none does for a while, the driver."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                worker = b"pyspark.worker" in command.read_bytes() and _is_below_us(command.parent)
            except OSError:
                continue  # it has ended
            if worker:
                os.kill(int(command.parent.name), signal.SIGKILL)
                return
        time.sleep(0.01)
    die()


def _is_below_us(process: Path) -> bool:
    while process.name not in ("0", "1"):
        if int(process.name) == os.getpid():
            return True
        parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
        process = process.parent / parent
    return False


if __name__ == "__main__":
    main()
