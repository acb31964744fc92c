"""What platforms do to tables by themselves, what upkeep does, and what is left of lost files."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from pipelines.job import run_stage
from pipelines.repair import repair
from pipelines.upkeep import UPKEEP
from recs import readers, schema
from recs.config import Config, load_config
from recs.lake import Lake, Location, VersionGone
from recs.ledger import Ledger
from recs.runs import Run
from recs.schema import Table
from recs.session import settings
from tests.pipelines.delivery import CONFIG

#: What Databricks' predictive optimization and others do, on their own time.
FOREIGN: dict[str, Callable[[Lake, str], object]] = {
    "optimize": lambda lake, name: lake.delta(name).optimize().executeCompaction(),
    "vacuum": lambda lake, name: lake.vacuum(name),
    "reorg": lambda lake, name: lake.spark.sql(
        f"REORG TABLE delta.`{lake.address(name)}` APPLY (PURGE)"
    ),
    "properties": lambda lake, name: lake.spark.sql(
        f"ALTER TABLE delta.`{lake.address(name)}` SET TBLPROPERTIES ('team' = 'platform')"
    ),
    "clustering": lambda lake, name: lake.spark.sql(
        f"ALTER TABLE delta.`{lake.address(name)}` CLUSTER BY (run_id)"
    ),
}


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    return Lake(spark, Location(str(tmp_path / "lake")), "backtest")


def run(lake: Lake, run_id: str, stage: str = "stage", *, take_over: bool = False) -> Run:
    return Run(lake, stage, run_id, config_hash="c", take_over=take_over)


def ids(lake: Lake, *users: str) -> DataFrame:
    rows = [(user, number) for number, user in enumerate(users)]
    return lake.spark.createDataFrame(rows, "user string, user_id int").repartition(2)


def users(lake: Lake) -> list[str]:
    return sorted(row.user for row in readers.read(lake, "user_ids").collect())


def operations(lake: Lake, name: str) -> list[str | None]:
    return [commit.operation for commit in lake.commits(name, after=-1)]


def test_others_may_keep_tables_between_runs_and_amid_them(lake: Lake) -> None:
    turns = itertools.cycle(FOREIGN.values())

    def foreign() -> None:
        next(turns)(lake, "user_ids")

    with run(lake, "r1") as first:
        first.write("user_ids", ids(lake, "a", "b"))
    foreign()
    with run(lake, "r2") as second:
        foreign()
        second.write("user_ids", ids(lake, "c"), "append")
        foreign()
        second.write("user_ids", ids(lake, "d"), "append")
    assert users(lake) == ["a", "b", "c", "d"]
    foreign()
    with pytest.raises(ZeroDivisionError), run(lake, "r3") as third:
        third.write("user_ids", ids(lake, "e"), "append")
        foreign()
        raise ZeroDivisionError
    assert sorted(row.user for row in lake.load("user_ids").collect()) == users(lake)
    foreign()
    with run(lake, "r4") as fourth:
        fourth.keep("user_ids")
    # What failed is put back once; nothing that others have done is.
    done = operations(lake, "user_ids")
    assert done.count("RESTORE") == 1
    assert {"OPTIMIZE", "VACUUM END", "SET TBLPROPERTIES", "CLUSTER BY"} <= set(done)
    assert users(lake) == ["a", "b", "c", "d"]


def lose_old_files(lake: Lake, name: str) -> None:
    """Remove the files of all versions but the newest."""
    with settings(lake.spark, {"spark.databricks.delta.retentionDurationCheck.enabled": "false"}):
        lake.vacuum(name, hours=0)


def test_a_stage_that_overwrites_needs_nothing_of_what_was(lake: Lake) -> None:
    with run(lake, "r1") as first:
        first.write("user_ids", ids(lake, "a"))
    run(lake, "r2").__enter__().write("user_ids", ids(lake, "b"))  # and is killed
    lose_old_files(lake, "user_ids")
    with run(lake, "r2", take_over=True) as again:
        again.write("user_ids", ids(lake, "c"))
    assert users(lake) == ["c"]
    assert "RESTORE" not in operations(lake, "user_ids")


def config_of(root: str, tmp_path: Path) -> Config:
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(CONFIG))
    return load_config(file, [f"root={root}", "models=slim,sasrec"])


def test_a_table_that_grows_is_repaired_of_what_is_left(lake: Lake, tmp_path: Path) -> None:
    with run(lake, "r1") as first:
        first.write("user_ids", ids(lake, "a", "b"), "append")
    killed = run(lake, "r2").__enter__()
    killed.write("user_ids", ids(lake, "lost"), "append")
    FOREIGN["optimize"](lake, "user_ids")
    lose_old_files(lake, "user_ids")
    with (
        pytest.raises(VersionGone, match="run `recs repair user_ids`"),
        run(lake, "r2", take_over=True) as again,
    ):
        again.write("user_ids", ids(lake, "c"), "append")
    repair("user_ids", config_of(lake.location.root, tmp_path), lake, "mended")
    assert users(lake) == ["a", "b"]
    with run(lake, "r3", take_over=True) as third:
        third.write("user_ids", ids(lake, "c"), "append")
    assert users(lake) == ["a", "b", "c"]


def test_content_of_long_ago_is_read_where_its_files_are_today(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run(lake, "r1") as first:
        first.write("user_ids", ids(lake, "a", "b"))
    FOREIGN["optimize"](lake, "user_ids")
    lose_old_files(lake, "user_ids")
    monkeypatch.setattr("recs.ledger._FRESH", timedelta(0))
    assert users(lake) == ["a", "b"]
    with run(lake, "reader", "read") as reader:
        assert reader.read("user_ids").count() == 2
        assert reader.inputs == {"user_ids": 1}


def test_what_is_vouched_for_is_known_when_the_log_is_cut(lake: Lake) -> None:
    with run(lake, "r1") as first:
        first.write("user_ids", ids(lake, "a", "b"))
    FOREIGN["optimize"](lake, "user_ids")
    FOREIGN["properties"](lake, "user_ids")
    lake.vouch("user_ids", 1)
    log = Path(lake.address("user_ids"), "_delta_log")
    (log / f"{2:020}.json").unlink()
    assert lake.same_content("user_ids", 1) == (4, True)
    (log / f"{4:020}.json").unlink()
    assert lake.same_content("user_ids", 1) == (1, False)


def test_a_table_that_is_kept_keeps_the_version_that_others_have_read(lake: Lake) -> None:
    with run(lake, "r1") as first:
        first.write("user_ids", ids(lake, "a"))
    with run(lake, "c1", "consumer") as consumer:
        consumer.read("user_ids")
    FOREIGN["optimize"](lake, "user_ids")
    with run(lake, "r2") as second:
        second.keep("user_ids")
    with run(lake, "c2", "consumer") as consumer:
        assert consumer.unchanged("user_ids")


def test_older_tables_get_the_clustering_properties_and_checks_of_today(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = schema.TABLES["user_ids"]
    plain = Table(**{**today.__dict__, "cluster_by": (), "checks": {}})
    with monkeypatch.context() as patch:
        patch.setitem(schema.TABLES, "user_ids", plain)
        patch.setattr(schema, "_KEPT", {})
        with run(lake, "r1") as first:
            first.write("user_ids", ids(lake, "a"))
    lake = Lake(lake.spark, lake.location, lake.mode)
    with run(lake, "r2") as second:
        second.write("user_ids", ids(lake, "b"), "append")
    detail = lake.delta("user_ids").detail().collect()[0]
    assert tuple(detail["clusteringColumns"]) == today.cluster_by
    assert today.all_properties.items() <= detail["properties"].items()
    assert detail["properties"]["delta.constraints.dense"] == today.checks["dense"]
    assert users(lake) == ["a", "b"]


def positives(lake: Lake, *numbers: int, item: int) -> DataFrame:
    rows = [(user, [item], None, None) for user in numbers]
    lists = "train array<int>, validation array<int>, test array<int>"
    return lake.spark.createDataFrame(rows, f"user_id int, {lists}")


def test_upkeep_compacts_what_replacements_have_left(lake: Lake, tmp_path: Path) -> None:
    with run(lake, "r0") as first:
        first.write("user_positives", positives(lake, *range(50), item=0))
    changed = lake.spark.range(14).selectExpr("cast(id as int) user_id")
    for day in (1, 2):
        with run(lake, f"r{day}") as replacing:
            rows = positives(lake, *range(14), item=day)
            replacing.replace("user_positives", rows, gone=changed)
    before = readers.read(lake, "user_positives").collect()
    config = config_of(lake.location.root, tmp_path)
    busy = Run(lake, "busy", "b", config_hash="c", reads=(), writes=("user_positives",)).__enter__()
    done = run_stage(UPKEEP, lake, config, "early")
    assert json.loads(done.details["left"]) == ["user_positives"]
    busy.__exit__(None, None, None)
    done = run_stage(UPKEEP, lake, config, "night")
    assert json.loads(done.details["compacted"]) == ["user_positives"]
    assert lake.files("user_positives")[0] == 1
    assert sorted(readers.read(lake, "user_positives").collect()) == sorted(before)
    assert sorted(lake.load("user_positives").collect()) == sorted(before)
    again = run_stage(UPKEEP, lake, config, "next")
    assert json.loads(again.details["compacted"]) == []


def test_upkeep_removes_folders_that_nothing_names(lake: Lake, tmp_path: Path) -> None:
    root, mode = Path(lake.location.root), lake.mode

    def folder(kind: str, *parts: str, days: float = 0.0, reads: str | None = None) -> Path:
        made = root.joinpath(kind, mode, *parts)
        made.mkdir(parents=True)
        file = made / ("job.json" if reads else "weights")
        file.write_text(json.dumps({"training_set": f"{root}/training_sets/{mode}/{reads}"}))
        os.utime(file, (time.time() - days * 86_400,) * 2)
        return made

    def finish(stage: str, run_id: str, part: str | None = None, **details: str) -> None:
        with Run(lake, stage, run_id, config_hash="c", part=part) as done:
            done.details.update(details)

    for number in range(4):
        finish("export", f"e{number}")
        finish("train", f"t{number}", "sasrec")
        folder("training_sets", f"e{number}", days=20)
        folder("models", "sasrec", f"t{number}")
    folder("training_sets", "waiting", days=2)
    finish("embed", "m", "sasrec", trained="t0")
    folder("models", "sasrec", "killed", days=1, reads="e0")
    folder("models", "dropped", "forgotten", days=20, reads="e1")
    folder("studies", "sasrec", "search/trial-0", days=2, reads="e0")
    run_stage(UPKEEP, lake, config_of(str(root), tmp_path), "night")
    left = {str(path.relative_to(root)) for path in root.glob(f"*/{mode}/**/*") if path.is_dir()}
    assert {name for name in left if name.startswith("training_sets")} == {
        f"training_sets/{mode}/{name}" for name in ("e0", "e2", "e3", "waiting")
    }
    models = {name.rpartition("/")[2] for name in left if name.startswith("models/")}
    assert models == {"sasrec", "dropped", "t0", "t1", "t2", "t3", "killed"}
    assert (root / "studies" / mode / "sasrec" / "search" / "trial-0").is_dir()


def test_the_ledger_is_compacted_as_it_grows(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recs.ledger._ROWS_A_FILE", 4)
    for number in range(5):
        with run(lake, f"r{number}"):
            pass
    assert lake.files("runs")[0] == 2
    assert [row["run_id"] for row in Ledger(lake).rows()] == [f"r{n}" for n in range(5)]
