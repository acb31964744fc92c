"""The session runs Delta and the driver's Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from pyspark.sql import SparkSession

from recs.session import SessionError, get_session


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
    session = MagicMock()
    session.conf.get.return_value = "org.example.Extensions"
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: session)
    with pytest.raises(SessionError, match="lacks Delta: start it with --packages io.delta"):
        get_session()


def test_a_jvm_that_does_not_start_says_why_and_leaves_no_file(tmp_path: Path) -> None:
    code = """if True:
        from recs.session import get_session
        get_session("x", master="local[1]", conf={"spark.driver.memory": "1x"})
    """
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "SessionError: Spark did not start" in done.stderr
    assert "Invalid maximum heap size: -Xmx1x" in done.stderr
    assert not list(tmp_path.glob("*recs*"))
