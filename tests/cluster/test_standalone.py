"""Training as tasks of a real cluster: a standalone master and two workers on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyspark
import pytest

from recs.session import DELTA_CONF, delta_package
from tests.pipelines.delivery import make_delivery

REPOSITORY = Path(__file__).parents[2]
SPARK_HOME = Path(pyspark.__file__).parent
ENVIRONMENT = os.environ | {
    "SPARK_HOME": str(SPARK_HOME),
    "PYSPARK_PYTHON": sys.executable,
    "PYSPARK_DRIVER_PYTHON": sys.executable,
    "SPARK_LOCAL_IP": "127.0.0.1",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def master(tmp_path: Path) -> Iterator[str]:
    """Start a cluster of two workers with a core each, and return its URL."""
    port = free_port()
    url = f"spark://127.0.0.1:{port}"
    deploy, of_worker = "org.apache.spark.deploy", ["--cores", "1", "--memory", "1500m"]
    commands = [
        [f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(port)],
        *([f"{deploy}.worker.Worker", "--host", "127.0.0.1", *of_worker, url] for _ in range(2)),
    ]
    processes = []
    try:
        for number, command in enumerate(commands):
            with open(tmp_path / f"process-{number}.log", "w") as log:
                started = [str(SPARK_HOME / "bin" / "spark-class"), *command, "--webui-port", "0"]
                if number:
                    started += ["--work-dir", str(tmp_path / f"worker-{number}")]
                processes.append(subprocess.Popen(started, env=ENVIRONMENT, stdout=log, stderr=log))
            ended = time.monotonic() + 60
            while not answers(port):
                assert time.monotonic() < ended, (tmp_path / "process-0.log").read_text()
                time.sleep(0.2)
        yield url
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


@pytest.mark.cluster
def test_networks_train_as_tasks_of_a_cluster(master: str, tmp_path: Path) -> None:
    delivery = make_delivery(tmp_path / "data")
    conf = DELTA_CONF | {
        "spark.executor.memory": "1g",
        "spark.sql.shuffle.partitions": "2",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.ui.enabled": "false",
    }
    submit = [str(SPARK_HOME / "bin" / "spark-submit"), "--master", master]
    submit += ["--packages", delta_package()]
    submit += [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
    given = [
        "--config",
        str(delivery / "tiny.yaml"),
        f"data={delivery}",
        f"root={tmp_path}/lake",
        "models=popularity,sasrec",
        "sequences.length=8",
        "export.lanes=2",
        "processes={count: 2, local: false, threads: 1}",
        "networks.sasrec.training={epochs: 2, batch_size: 8}",
        "networks.sasrec.model.dim=16",
        "--json",
    ]
    done = subprocess.run(
        [*submit, str(REPOSITORY / "jobs" / "run.py"), *given],
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    document = json.loads(done.stdout.splitlines()[-1])
    assert {row["model"] for row in document["metrics"]} == {"popularity", "sasrec"}
    folders = list((tmp_path / "lake" / "models" / "backtest" / "sasrec").iterdir())
    assert [(folder / "model" / "manifest.json").exists() for folder in folders] == [True]
