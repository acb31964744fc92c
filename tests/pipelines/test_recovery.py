"""A run killed anywhere and started again ends as an unbroken one; readers see whole tables."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipelines.run import open_lake, stages_of
from recs import readers
from recs.config import Config
from recs.lake import Lake
from recs.ledger import Ledger
from tests.pipelines.delivery import deliver
from tests.pipelines.killed import KILLED

Tables = dict[str, list[str]]


def start(config: Config, delivery: Path, point: str, stage: str, *overrides: str) -> int:
    """Run the pipeline, killed at a point of a stage, and return the exit code."""
    command = [sys.executable, "-m", "tests.pipelines.killed", point, stage]
    given = [str(delivery / "tiny.yaml"), f"data={delivery}", f"root={config.root}", *overrides]
    repository = Path(__file__).parents[2]
    return subprocess.run([*command, *given], cwd=repository, capture_output=True).returncode


def committed(lake: Lake) -> Tables:
    """Return all rows of every table as consumers read them, but for the runs that wrote them.

    The last digits of SLIM's residuals, which are rounding alone, depend on where in memory a
    process has its arrays.
    """

    def rows(table: str, version: int) -> list[str]:
        found = lake.load(table, version).drop("run_id", "model_version")
        doubles = [name for name, kind in found.dtypes if kind == "double"]
        rounded = found.withColumns({name: F.round(name, 12) for name in doubles})
        return sorted(map(str, rounded.collect()))

    versions = Ledger(lake).versions()
    names = readers.names(lake, versions)
    return {lake.key(name): rows(name, versions[lake.key(name)]) for name in names}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_inside_and_after_every_stage_ends_as_an_unbroken_one(
    spark: SparkSession, configured: Callable[..., Config], delivery: Path, tmp_path: Path
) -> None:
    whole, broken = configured(f"root={tmp_path}/whole"), configured(f"root={tmp_path}/broken")
    assert start(whole, delivery, "never", "", "run_id=night") == 0
    expected = committed(open_lake(whole))
    for stage in stages_of(broken):
        for point in ("inside", "after"):
            assert start(broken, delivery, point, stage.label, "run_id=night") == KILLED
            for table, rows in committed(open_lake(broken)).items():
                assert rows == expected[table], f"{table} after a kill {point} {stage.label}"
    assert start(broken, delivery, "never", "", "run_id=night") == 0
    assert committed(open_lake(broken)) == expected


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_second_day_killed_at_random_moments_ends_as_an_unbroken_one(
    spark: SparkSession, configured: Callable[..., Config], delivery: Path, tmp_path: Path
) -> None:
    """Two kills of the driver and one of a worker inside each stage of the second day."""
    given = ("sequences.length=4", "negatives.per_positive=2", "mode=serve", "slim.warm_start=true")
    whole = configured(*given, f"root={tmp_path}/whole")
    broken = configured(*given, f"root={tmp_path}/broken")
    for config in (whole, broken):
        assert start(config, delivery, "never", "", *given, "run_id=one") == 0
    before = committed(open_lake(broken))
    assert before == committed(open_lake(whole))
    deliver(delivery, 2, range(10, 34))
    assert start(whole, delivery, "never", "", *given, "run_id=two") == 0
    after = committed(open_lake(whole))
    moments = random.Random(4)
    for stage in stages_of(broken):
        unbroken = Ledger(open_lake(whole)).newest(stage.name, stage.model)
        assert unbroken is not None
        for victim in ("driver", "worker", "driver"):
            point = f"{victim}:{moments.uniform(0, 0.9 * unbroken.seconds):.2f}"
            ended = start(broken, delivery, point, stage.label, *given, "run_id=two")
            print(f"{point} of {stage.label}: {ended}", flush=True)
            assert ended != 0 or victim == "driver", f"{point} of {stage.label}"
            for table, rows in committed(open_lake(broken)).items():
                assert rows in (before[table], after[table]), f"{table}, {point} of {stage.label}"
    assert start(broken, delivery, "never", "", *given, "run_id=two") == 0
    assert committed(open_lake(broken)) == after
