"""Run the pipeline in a process of its own that dies, as by SIGKILL, at one point of one stage.

``python -m tests.pipelines.killed POINT STAGE CONFIG OVERRIDE…``. ``inside``: while Spark writes
the stage's first table, before Delta's commit; ``after`` the stage's commit; ``never``.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from pipelines.run import open_lake, run_stages, stages_of
from recs.config import load_config
from recs.runs import Run

KILLED = 137


def main() -> None:
    point, stage, file, *overrides = sys.argv[1:]
    write, commit = Run.write, Run._commit

    def die() -> None:
        os._exit(KILLED)

    def write_or_die(run: Run, *given: Any, **options: Any) -> int:
        if (point, stage) == ("inside", run.stage):
            threading.Timer(0.15, die).start()
        return write(run, *given, **options)

    def commit_or_die(run: Run) -> None:
        commit(run)
        if (point, stage) == ("after", run.stage):
            die()

    Run.write = write_or_die  # type: ignore[assignment, method-assign]
    Run._commit = commit_or_die  # type: ignore[assignment, method-assign]
    config = load_config(file, overrides)
    run_stages(stages_of(config), config, open_lake(config))


if __name__ == "__main__":
    main()
