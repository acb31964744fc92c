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
import yaml

import pipelines.demo
from pipelines import cli, run
from pipelines.compare import GateFailed, check_gates
from recs.config import Config, ConfigError, load_config
from recs.lake import LakeError
from recs.storage import SCHEMES, remove_tree, write_file

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


GATED = {
    "events": {
        "sources": [{"path": "e.csv", "columns": {"user": "u", "item": "i", "timestamp": "t"}}]
    },
    "models": ["slim"],
}


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"k": 15}, "hr@15 of slim (full) is not measured: add 15 to evaluate.ks"),
        ({"model": "popularity"}, "add popularity to models"),
        ({"protocol": "uniform100"}, "add uniform100 to evaluate.protocols"),
    ],
)
def test_a_gate_on_what_is_not_measured_is_refused_where_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: dict[str, object], message: str
) -> None:
    """Before Spark starts, by what evaluates; what else a team runs has nothing to do with it."""
    monkeypatch.setattr(run, "get_session", lambda *_, **__: pytest.fail("Spark is started"))
    gates = [{"model": "slim", "metric": "hr", "at_least": 0.1} | gate]
    file = tmp_path / "gated.yaml"
    file.write_text(yaml.safe_dump(GATED | {"evaluate": {"gates": gates}}))
    config = load_config(file, ["root=lake"])
    with pytest.raises(ConfigError) as error:
        run.check(run.stages_named(config, "compare"), config)
    assert message in str(error.value)
    run.check(run.stages_named(config, "recommend"), config)
    run.check(run.stages_of(config.model_copy(update={"mode": "serve"}))[1:], config)


def test_gates_on_lists_and_whole_rankings_are_measured_under_any_protocol(tmp_path: Path) -> None:
    gates = [
        {"model": "slim", "metric": "coverage", "at_least": 0.1},
        {"model": "slim", "metric": "mrr", "k": None, "protocol": "uniform100", "at_least": 0.1},
    ]
    file = tmp_path / "gated.yaml"
    evaluate = {"gates": gates, "protocols": ["uniform100"]}
    file.write_text(yaml.safe_dump(GATED | {"evaluate": evaluate}))
    config = load_config(file, ["root=lake"])
    run.check(run.stages_named(config, "compare"), config)


def test_data_that_is_not_there_is_missed_by_ingest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "get_session", lambda *_, **__: pytest.fail("Spark is started"))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(GATED))
    assert cli.main(["ingest", "--config", str(file), "root=lake"]) == 2
    assert "give it as data=FOLDER" in capsys.readouterr().err
    config = load_config(file, ["root=lake"])
    run.check(run.stages_named(config, "recommend"), config)


def test_a_config_is_found_by_name_or_on_any_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Config] = []
    monkeypatch.setattr(cli, "_run", lambda stages, config, *_, **__: ran.append(config))
    monkeypatch.setitem(SCHEMES, "s3a", "memory")
    write_file("s3a://conf/demo.yaml", yaml.safe_dump(GATED | {"name": "remote"}).encode())
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(GATED | {"name": "local"}))
    for name in ("demo.yaml", "conf/demo.yaml", "s3a://conf/demo.yaml", f"{tmp_path}/demo.yaml"):
        assert cli.main(["run", "--config", name, "root=lake"]) == 0
    remove_tree("s3a://conf")
    assert [config.name for config in ran] == ["demo", "demo", "remote", "local"]


@pytest.mark.parametrize(
    ("overrides", "root"),
    [
        (["root=~/x"], "{home}/x"),
        (["root=first", "root=file:/tmp/x/"], "file:/tmp/x/"),
        (["root=s3a://bucket/demo"], "s3a://bucket/demo"),
        ([], "{here}/out/demo"),
    ],
)
def test_the_demo_generates_its_events_under_its_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], root: str
) -> None:
    ran: list[Config] = []
    made: list[str] = []
    monkeypatch.setattr(cli, "_run", lambda stages, config, *_, **__: ran.append(config))
    monkeypatch.setattr(pipelines.demo, "make_input", lambda folder, verbose: made.append(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *overrides]) == 0
    expected = root.format(home=tmp_path / "home", here=tmp_path)
    assert [config.root for config in ran] == [expected]
    assert [config.data for config in ran] == made == [expected.rstrip("/") + "/raw"]


def test_a_metric_that_is_no_number_passes_no_gate(tmp_path: Path) -> None:
    file = tmp_path / "gated.yaml"
    gates = [{"model": "slim", "metric": "gini", "at_least": 0.0}]
    file.write_text(yaml.safe_dump(GATED | {"evaluate": {"gates": gates}}))
    row = {"model": "slim", "metric": "gini", "k": 10, "protocol": "full"}
    config = load_config(file, ["root=lake"])
    check_gates(config, [row | {"value": 0.5}])
    for value, told in ((float("nan"), "is nan"), (None, "was not measured")):
        with pytest.raises(GateFailed, match=told):
            check_gates(config, [row | {"value": value}])


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
