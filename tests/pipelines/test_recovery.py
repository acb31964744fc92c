"""A run killed anywhere and started again ends as an unbroken one; readers see whole tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.run import open_lake, stages_of
from recs.config import Config
from recs.lake import Lake
from recs.runs import Ledger
from tests.pipelines.killed import KILLED


def start(config: Config, delivery: Path, point: str, stage: str) -> int:
    """Run the pipeline, killed at a point of a stage, and return the exit code."""
    command = [sys.executable, "-m", "tests.pipelines.killed", point, stage]
    given = [str(delivery / "tiny.yaml"), f"data={delivery}", f"root={config.root}", "run_id=night"]
    repository = Path(__file__).parents[2]
    return subprocess.run([*command, *given], cwd=repository, capture_output=True).returncode


def committed(lake: Lake) -> dict[str, list[str]]:
    """Return all rows of every table as consumers read them."""
    return {
        key: sorted(map(str, lake.load(key.rpartition("/")[2], version).collect()))
        for key, version in Ledger(lake).versions().items()
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_inside_and_after_every_stage_ends_as_an_unbroken_one(
    spark: SparkSession, configured: Callable[..., Config], delivery: Path, tmp_path: Path
) -> None:
    whole, broken = configured(f"root={tmp_path}/whole"), configured(f"root={tmp_path}/broken")
    assert start(whole, delivery, "never", "") == 0
    expected = committed(open_lake(whole))
    for stage in stages_of(broken):
        for point in ("inside", "after"):
            assert start(broken, delivery, point, stage.name) == KILLED
            for table, rows in committed(open_lake(broken)).items():
                assert rows == expected[table], f"{table} after a kill {point} {stage.name}"
    assert start(broken, delivery, "never", "") == 0
    assert committed(open_lake(broken)) == expected
