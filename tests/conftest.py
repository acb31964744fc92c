"""One Spark session for each process of the suite, small and quiet."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

# Tiny products: threads that wait for each other take time from Spark's. Read when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from pyspark.sql import SparkSession

from recs.session import get_session


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process waits at the end for another's."""
    items.sort(key=lambda item: "pipelines" not in item.path.parts)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    scratch = tmp_path_factory.mktemp("spark")
    conf = {
        "spark.sql.shuffle.partitions": "2",
        "spark.default.parallelism": "2",
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.local.dir": str(scratch / "local"),
        "spark.driver.memory": "2g",
        # Tiny data: compiling queries and hot loops well costs more than it saves.
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    }
    if os.environ.get("RECS_TEST_PLANNER") != "production":
        conf |= {"spark.sql.codegen.wholeStage": "false", "spark.sql.adaptive.enabled": "false"}
    # The first session ever fetches Delta's jars, into a folder that Ivy does not lock.
    with open(tmp_path_factory.getbasetemp().parent / "session.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        session = get_session("recs-tests", master="local[2]", conf=conf)
    yield session
    session.stop()
