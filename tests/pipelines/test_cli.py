"""How the command line ends: exit codes, one line of an error, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import cli
from pipelines.evaluate import GateFailed
from recs.lake import LakeError

# Processes that are not of a terminal may have been started without Ctrl-C.
_START = """if True:
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pipelines.cli import console
    console()
"""


@pytest.mark.parametrize(
    ("error", "options", "code", "traceback"),
    [
        (LakeError("no such table"), [], 2, False),
        (LakeError("no such table"), ["-v"], 2, True),
        (GateFailed("too low"), [], 3, False),
        (ValueError("of recs itself"), [], 1, True),
    ],
)
def test_exit_codes(
    error: Exception,
    options: list[str],
    code: int,
    traceback: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert cli.main(["run", *options]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and lines[-1].endswith(str(error))
    assert (len(lines) > 1) == traceback


def _signalled(delivery: Path, root: Path, number: int, due: Callable[[int], bool]) -> list[str]:
    """Send a signal to ``recs ingest`` once ``due(pid)``, and return what it told.

    It has to end with 128 and the signal's number.
    """
    command = [
        "ingest",
        "--config",
        str(delivery / "tiny.yaml"),
        f"data={delivery}",
        f"root={root}",
    ]
    started = subprocess.Popen(
        [sys.executable, "-c", _START, *command],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not due(started.pid):
            assert started.poll() is None
            time.sleep(0.02)
        os.kill(started.pid, number)
        told = started.communicate()[1]
    finally:
        started.kill()
    assert started.returncode == 128 + number
    return told.splitlines()


def _has_jvm(pid: int) -> bool:
    """Tell whether the process has a child that is a JVM."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue  # it has ended
        if name == "java" and int(fields.split()[1]) == pid:
            return True
    return False


@pytest.mark.parametrize("seconds", [0, 2])
def test_ctrl_c_while_spark_starts_is_one_line(
    delivery: Path, tmp_path: Path, seconds: float
) -> None:
    def due(pid: int) -> bool:
        found = _has_jvm(pid)
        time.sleep(seconds if found else 0)
        return found

    assert _signalled(delivery, tmp_path / "lake", signal.SIGINT, due) == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_told_to_end_notes_its_failure(
    delivery: Path, tmp_path: Path, number: signal.Signals
) -> None:
    lake = tmp_path / "lake"

    def is_writing(pid: int) -> bool:
        return bool(list((lake / "lake" / "events").glob("*.parquet")))

    told = _signalled(delivery, lake, number, is_writing)
    assert told[-2].startswith("[1/1] ingest: failed in") and told[-1] == "interrupted"
    rows = [pq.read_table(file) for file in (lake / "lake" / "runs").glob("*.parquet")]
    assert pa.concat_tables(rows).column("state").to_pylist() == ["failed"]
    assert not list((lake / "_work" / "running").iterdir())
