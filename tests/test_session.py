"""The session runs Delta and the driver's Python."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

import pyspark
import pytest
from pyspark.sql import SparkSession

from recs.session import SessionError, delta_package, get_session, num_tasks


def test_delta_tables_can_be_written_and_read(spark: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "table")
    spark.range(3).write.format("delta").save(path)
    assert spark.read.format("delta").load(path).count() == 3


def test_workers_run_the_drivers_python(spark: SparkSession) -> None:
    def executable(batches):
        import pyarrow as pa

        for batch in batches:
            yield pa.RecordBatch.from_pydict({"python": [sys.executable] * batch.num_rows})

    rows = spark.range(2).mapInArrow(executable, "python string").collect()
    assert {row.python for row in rows} == {sys.executable}


def test_a_session_without_delta_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = MagicMock(version="4.1.3")
    session.conf.get.return_value = "org.example.Extensions"
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: session)
    told = r"lacks Delta: start it with --packages io\.delta:delta-spark_4\.1_2\.13:"
    with pytest.raises(SessionError, match=told):
        get_session()


@pytest.mark.parametrize(
    ("version", "artifact"),
    [
        ("4.0.1", "delta-spark_4.0_2.13"),
        ("4.1.0.dev0", "delta-spark_4.1_2.13"),
        ("4.2.1", "delta-spark_4.2_2.13"),
    ],
)
def test_deltas_package_is_that_of_the_spark(version: str, artifact: str) -> None:
    group, name, number = delta_package(version).split(":")
    assert (group, name) == ("io.delta", artifact)
    assert number == importlib.metadata.version("delta-spark")


def test_deltas_package_is_by_default_that_of_the_pyspark_here() -> None:
    assert delta_package() == delta_package(pyspark.__version__)


@pytest.mark.parametrize("version", ["3.5.9", "4.3.0", "4.20.0", "5.0.0"])
def test_a_spark_without_a_delta_is_refused(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = rf"no Delta is known for Spark {version}: install PySpark 4\.0, 4\.1, 4\.2, or name"
    with pytest.raises(SessionError, match=told):
        delta_package(version)
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setattr(pyspark, "__version__", version)
    monkeypatch.setenv("RECS_IVY_HOME", str(tmp_path))
    with pytest.raises(SessionError, match=told):
        get_session()


def test_a_jvm_that_does_not_start_says_why_and_leaves_no_file(tmp_path: Path) -> None:
    code = """if True:
        from recs.session import get_session
        get_session("x", master="local[1]", conf={"spark.driver.memory": "1x"})
    """
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stderr.endswith("Spark did not start: Invalid maximum heap size: -Xmx1x\n")
    assert not list(tmp_path.glob("*recs*"))


def test_a_folder_for_jars_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setenv("RECS_IVY_HOME", str(tmp_path / "file" / "ivy"))
    with pytest.raises(SessionError, match=r"file/ivy, .* set RECS_IVY_HOME to a folder that can"):
        get_session()


def test_a_java_that_spark_does_not_run_on_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"25.0.1\" 2025-10-21' >&2\n")
    java.chmod(0o755)
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SessionError, match=r'Java 17 or 21 is needed, .* version "25\.0\.1"'):
        get_session()


def _session(encoding: str, master: str) -> MagicMock:
    session = MagicMock()
    session.conf.get.return_value = "io.delta.sql.DeltaSparkSessionExtension"
    session._jvm.java.lang.System.getProperty.return_value = encoding
    session.sparkContext.master = master
    return session


def test_a_jvm_that_reads_ascii_names_alone_is_refused_or_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = "the JVM's file names are ANSI_X3.4-1968: set LC_ALL=C.UTF-8"
    monkeypatch.setattr(logging.getLogger("recs"), "propagate", True)
    local, cluster = (_session("ANSI_X3.4-1968", name) for name in ("local[2]", "yarn"))
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: local)
    with pytest.raises(SessionError, match=told):
        get_session()
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: cluster)
    assert get_session() is cluster and told in caplog.text
    caplog.clear()
    utf8 = _session("UTF-8", "local[2]")
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: utf8)
    assert get_session() is utf8 and not caplog.text


def test_a_session_takes_settings_locale_and_handler_of_the_program(tmp_path: Path) -> None:
    """In one process, for Spark takes its time to start: started under LC_ALL=C."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "événements.csv").write_text("a\nb\n")
    (data / "plain.csv").write_text("c\n")
    code = """if True:
        import os, signal, sys
        from recs.session import get_session
        handler = lambda number, frame: None
        signal.signal(signal.SIGINT, handler)
        folder, repository = sys.argv[1:]
        conf = {"spark.jars.packages": "org.example:tiny:1", "spark.jars.repositories": repository}
        spark = get_session("x", master="local[1]", conf=conf)
        assert signal.getsignal(signal.SIGINT) is handler
        assert os.environ["LC_ALL"] == "C"
        print(spark.read.text(folder).count(), spark.conf.get("spark.jars.packages"))
        print([jar for jar in spark.sparkContext._jsc.sc().listJars().mkString(" ").split()
               if "org.example" in jar])
    """
    repository = _repository(tmp_path / "repository")
    env = {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_CTYPE")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(data), repository],
        env=env | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[0] == f"3 {delta_package()},org.example:tiny:1", done.stderr
    assert "org.example_tiny-1.jar" in done.stdout


def _repository(folder: Path) -> str:
    """Make a Maven repository of one package, org.example:tiny:1, and return its address."""
    place = folder / "org" / "example" / "tiny" / "1"
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / "tiny-1.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    names = "<groupId>org.example</groupId><artifactId>tiny</artifactId><version>1</version>"
    (place / "tiny-1.pom").write_text(
        f"<project><modelVersion>4.0.0</modelVersion>{names}</project>"
    )
    return folder.as_uri()


@pytest.mark.parametrize(("given", "expected"), [("7", 7), ("auto", 6), (None, 6)])
def test_tasks_are_as_many_as_spark_is_told(
    spark: SparkSession, given: str | None, expected: int
) -> None:
    session = MagicMock()
    session.conf.get.return_value = given
    session.range = spark.range  # of two parts
    assert num_tasks(session) == expected
