"""Models side by side: processes that fit two of them into one lake at the same moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.run import open_lake, run_stages, stages_named
from recs import readers
from recs.config import Config
from recs.ledger import Ledger

TIMES = 10


def start(config: Config, delivery: Path, run_id: str, model: str) -> subprocess.Popen[str]:
    """Start ``recs run`` of a model's stages from fit to rank."""
    stages = ",".join(f"{stage}/{model}" for stage in ("fit", "recommend", "rank"))
    command = [sys.executable, "-m", "pipelines", "run", "--select", stages]
    given = [f"data={delivery}", f"root={config.root}", f"run_id={run_id}", f"models={model}"]
    return subprocess.Popen(
        [*command, "--config", str(delivery / "tiny.yaml"), *given],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_processes_fit_two_models_into_one_lake(
    spark: SparkSession, configured: Callable[..., Config], delivery: Path
) -> None:
    config = configured("run_id=prepared")
    lake = open_lake(config)
    stages = stages_named(config, "ingest", "vocabulary", "split", "fit/popularity")
    run_stages(stages, config, lake)
    for time in range(TIMES):
        started = {
            model: start(config, delivery, f"{model}-{time}", model)
            for model in ("slim", "popularity")
        }
        for process in started.values():
            told = process.communicate()[1]
            assert process.returncode == 0, told
    rows = Ledger(lake).rows()
    assert [row["sequence"] for row in rows] == list(range(len(rows)))
    for model in ("slim", "popularity"):
        lists = readers.read(lake, f"recommendations/{model}")
        assert {row.run_id for row in lists.select("run_id").distinct().collect()} == {
            f"{model}-{TIMES - 1}"
        }
