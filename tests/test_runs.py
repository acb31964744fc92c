"""The commit point: what consumers read is what the newest finished run wrote, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recs import attempts, schema
from recs.attempts import AtWork
from recs.lake import Lake, LakeError, Location
from recs.ledger import ConcurrentRun, Ledger
from recs.runs import MissingTable, Run
from recs.schema import Column, Migration, Table


@pytest.fixture
def lake(spark: SparkSession, tmp_path: Path) -> Lake:
    return Lake(spark, Location(str(tmp_path / "lake")), "backtest")


def run(lake: Lake, run_id: str = "r1", stage: str = "stage", *, take_over: bool = False) -> Run:
    return Run(lake, stage, run_id, config_hash="c", take_over=take_over)


def ids(lake: Lake, *users: str) -> DataFrame:
    rows = [(user, number) for number, user in enumerate(users)]
    return lake.spark.createDataFrame(rows, "user string, user_id int")


def read(lake: Lake) -> list[str]:
    with run(lake, "reader", "read") as reader:
        return sorted(row.user for row in reader.read("user_ids").collect())


def test_finished_run_is_read_and_traced(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a", "b"))
    assert read(lake) == ["a", "b"]
    finished = Ledger(lake).newest("stage")
    assert finished is not None
    assert finished.rows == {"user_ids": 2}
    assert {row.run_id for row in lake.load("user_ids").collect()} == {finished.run_id}


def test_clustering_outlives_overwrites(lake: Lake) -> None:
    for run_id in ("r1", "r2"):
        with run(lake, run_id) as one:
            assert one.write("user_ids", ids(lake, "a", "b")) == 2
    detail = lake.delta("user_ids").detail().collect()[0]
    assert tuple(detail["clusteringColumns"]) == schema.TABLES["user_ids"].cluster_by
    assert read(lake) == ["a", "b"]


def test_unwritten_table_names_the_table(lake: Lake) -> None:
    with pytest.raises(MissingTable, match="user_ids"), run(lake) as first:
        first.read("user_ids")


def test_failed_run_leaves_the_table_as_it_was(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a"))
    with pytest.raises(ZeroDivisionError), run(lake, "r2") as second:
        second.write("user_ids", ids(lake, "b"), "append")
        raise ZeroDivisionError
    assert read(lake) == ["a"]
    assert [row.user for row in lake.load("user_ids").collect()] == ["a"]
    assert "ZeroDivisionError" in [row.error for row in Ledger(lake).rows() if row.error][0]


def test_rerun_takes_over_what_a_killed_run_left(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a"))
    killed = run(lake, "r2").__enter__()
    killed.write("user_ids", ids(lake, "b"), "append")
    assert read(lake) == ["a"]
    with run(lake, "r2", take_over=True) as rerun:
        assert rerun.attempt == 2
        rerun.write("user_ids", ids(lake, "c"), "append")
    assert read(lake) == ["a", "c"]


def test_of_two_attempts_of_one_run_at_once_one_fails_and_nothing_is_mixed(lake: Lake) -> None:
    late = run(lake, "r1").__enter__()
    with run(lake, "r1", take_over=True) as attempt:
        attempt.keep("user_ids")
        late.keep("user_ids")
        assert attempt.write("user_ids", ids(lake, "a"), "append") == 1
        assert late.write("user_ids", ids(lake, "b", "c"), "append") == 2
    with pytest.raises(ConcurrentRun, match="taken over stage from run r1"):
        late.__exit__(None, None, None)
    assert read(lake) == ["a"]


def test_a_stage_at_work_is_refused_to_others_at_once(lake: Lake) -> None:
    at_work = Run(lake, "fit", "r1", config_hash="c", part="slim").__enter__()
    with Run(lake, "fit", "r2", config_hash="c", part="popularity"):
        pass
    with (
        pytest.raises(AtWork, match=r"run r1 is at work at fit/slim since .*--take-over"),
        Run(lake, "fit", "r2", config_hash="c", part="slim"),
    ):
        pytest.fail("two are at work")
    at_work.__exit__(None, None, None)
    with Run(lake, "fit", "r2", config_hash="c", part="slim"):
        pass


def test_what_a_run_does_not_change_gets_no_version(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a"))
    before = lake.newest("user_ids")
    with run(lake, "r2") as second:
        second.keep("user_ids")
    with run(lake, "r3") as third:
        third.replace("user_ids", ids(lake).limit(0), gone=ids(lake, "z").select("user"))
    assert lake.newest("user_ids") == before
    newest = Ledger(lake).newest("stage")
    assert newest is not None and newest.outputs == {"user_ids": before}


def test_a_failed_run_is_undone_once(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a"))
    with pytest.raises(ZeroDivisionError), run(lake, "r2") as second:
        second.write("user_ids", ids(lake, "b"), "append")
        raise ZeroDivisionError
    undone = lake.newest("user_ids")
    with run(lake, "r2") as rerun:
        assert rerun.attempt == 2
        rerun.write("user_ids", ids(lake, "c"), "append")
    assert undone is not None and lake.newest("user_ids") == undone + 1
    assert read(lake) == ["a", "c"]


def test_working_files_of_killed_attempts_are_removed_and_of_others_left(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_work(run_id: str) -> Run:
        attempt = run(lake, run_id, f"stage_{run_id}").__enter__()
        Path(attempt.work_folder).mkdir(parents=True)
        return attempt

    def tell(attempt: Run, **told: object) -> None:
        name = Path(attempt.work_folder).name
        note = Path(lake.location.work("running", name))
        note.write_text(json.dumps({**json.loads(note.read_text()), **told}))

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    alive, killed, silent, elsewhere = (at_work(f"r{n}") for n in range(4))
    long_ago = time.time() - 2 * attempts._DEAD_AFTER_SECONDS
    tell(alive, seen=long_ago)  # the machine has slept
    tell(killed, process=gone.pid)
    tell(silent, processes="another's", seen=long_ago)
    tell(elsewhere, processes="another's", process=gone.pid)
    with run(lake, "r1", "stage_r1") as rerun:
        assert rerun.attempt == 2
        left = [
            Path(attempt.work_folder).exists() for attempt in (alive, killed, silent, elsewhere)
        ]
    assert left == [True, False, False, True]
    for attempt in (alive, elsewhere):
        attempt.__exit__(None, None, None)
    for folder in ("running", "attempts"):
        assert not list(Path(lake.location.work(folder)).iterdir())


def test_of_two_runs_at_once_the_later_fails_and_nothing_is_mixed(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a"))
    with pytest.raises(ConcurrentRun, match="user_ids"), run(lake, "r2") as second:
        second.write("user_ids", ids(lake, "b"), "append")
        with run(lake, "r3", "other") as third:
            third.write("user_ids", ids(lake, "c"), "append")
    assert read(lake) == ["a", "c"]


def test_writes_of_two_runs_that_interleave_are_refused(lake: Lake) -> None:
    other = run(lake, "r3", "other").__enter__()
    with pytest.raises(ConcurrentRun), run(lake, "r2") as second:
        second.write("user_ids", ids(lake, "b"), "append")
        other.write("user_ids", ids(lake, "c"), "append")
        second.write("user_ids", ids(lake, "d"), "append")


def positives(lake: Lake, *users: int, item: int) -> DataFrame:
    rows = [(user, [item], None, None) for user in users]
    lists = "train array<int>, validation array<int>, test array<int>"
    return lake.spark.createDataFrame(rows, f"user_id int, {lists}")


def wanted(lake: Lake) -> dict[int, list[int]]:
    with run(lake, "reader", "read") as reader:
        return {row.user_id: row.train for row in reader.read("user_positives").collect()}


def test_replaced_rows_are_gone_and_the_others_stay(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_positives", positives(lake, 0, 1, 2, item=5))
    with run(lake, "r2") as second:
        gone = lake.spark.createDataFrame([(1,), (3,)], "user_id int")
        second.replace("user_positives", positives(lake, 1, 3, item=6), gone)
        assert wanted(lake) == {0: [5], 1: [5], 2: [5]}  # until it commits
    assert wanted(lake) == {0: [5], 1: [6], 2: [5], 3: [6]}


def test_a_run_replaces_some_of_its_own_rows(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_positives", positives(lake, 0, 1, item=5))
    with run(lake, "r2") as second:
        second.write("user_positives", positives(lake, 0, 2, 3, item=6), "append")
        gone = lake.spark.createDataFrame([(0,), (2,), (3,)], "user_id int")
        own = F.col("user_id") < 3
        second.replace("user_positives", positives(lake, 2, item=7), gone, own=own)
    assert wanted(lake) == {0: [5], 1: [5], 2: [7], 3: [6]}
    newest = Ledger(lake).newest("stage")
    assert newest is not None and newest.rows == {"backtest/user_positives": 2}


@pytest.mark.parametrize("users", [[7], []])
def test_where_no_row_is_gone_rows_are_added(lake: Lake, users: list[int]) -> None:
    with run(lake) as first:
        first.write("user_positives", positives(lake, 0, item=5))
    with run(lake, "r2") as second:
        gone = lake.spark.createDataFrame([(user,) for user in users], "user_id int")
        rows = positives(lake, 7, item=6).join(gone, "user_id", "left_semi")
        second.replace("user_positives", rows, gone)
    assert wanted(lake) == {0: [5]} | {user: [6] for user in users}


def test_a_failed_replacement_leaves_the_table_as_it_was(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_positives", positives(lake, 0, item=5))
    gone = lake.spark.createDataFrame([(0,)], "user_id int")
    with pytest.raises(ZeroDivisionError), run(lake, "r2") as second:
        second.replace("user_positives", positives(lake, 0, item=6), gone)
        raise ZeroDivisionError
    assert [row.train for row in lake.load("user_positives").collect()] == [[5]]


def new_users(lake: Lake, run_id: str, rebuild: bool = False) -> list[str] | None:
    with Run(lake, "consumer", run_id, config_hash="c", rebuild=rebuild) as consumer:
        rows = consumer.read_new("user_ids")
        return None if rows is None else sorted(row.user for row in rows.collect())


def test_new_rows_are_those_since_the_stages_last_run(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a"))
    assert new_users(lake, "c1") is None
    assert new_users(lake, "c2") == []
    with pytest.raises(ZeroDivisionError), run(lake, "r2") as failed:
        failed.write("user_ids", ids(lake, "lost"), "append")
        raise ZeroDivisionError
    with run(lake, "r2") as second:
        second.write("user_ids", ids(lake, "b"), "append")
    with run(lake, "r3") as third:
        third.write("user_ids", ids(lake, "c"), "append")
    assert new_users(lake, "c3", rebuild=True) is None
    assert new_users(lake, "c4") == []
    with run(lake, "r4") as fourth:
        fourth.write("user_ids", ids(lake, "d"), "append")
        fourth.write("user_ids", ids(lake, "e"), "append")
    assert new_users(lake, "c5") == ["d", "e"]
    with run(lake, "r5") as fifth:
        fifth.write("user_ids", ids(lake, "f"))
    assert new_users(lake, "c6") is None


def test_rows_that_came_after_another_stage_has_read_come_with_its_next_run(lake: Lake) -> None:
    """Rows that arrive between two stages are neither skipped by the second nor read twice."""

    def arrive(run_id: str, user: str) -> None:
        with run(lake, run_id) as delivery:
            delivery.write("user_ids", ids(lake, user), "append")

    def number(run_id: str) -> None:
        with run(lake, run_id, "numbering") as numbering:
            numbering.read("user_ids")

    def consume(run_id: str) -> tuple[list[str], list[str] | None, bool]:
        with run(lake, run_id, "consumer") as consumer:
            rows = consumer.read_as_of("numbering", "user_ids")
            new = consumer.read_new("user_ids")
            unchanged = consumer.unchanged("user_ids")
            found = None if new is None else sorted(row.user for row in new.collect())
            return sorted(row.user for row in rows.collect()), found, unchanged

    arrive("a1", "a")
    with pytest.raises(MissingTable, match="run the stage numbering first"):
        consume("c0")
    number("n1")
    arrive("a2", "b")
    assert consume("c1") == (["a"], None, False)
    arrive("a3", "c")
    assert consume("c2") == (["a"], [], True)
    number("n2")
    arrive("a4", "d")
    assert consume("c3") == (["a", "b", "c"], ["b", "c"], False)
    number("n3")
    assert consume("c4") == (["a", "b", "c", "d"], ["d"], False)


def test_tables_made_of_other_versions_are_refused_with_the_stages_to_run(lake: Lake) -> None:
    counted = "items int, shuffle int, rules bigint, shuffled_rules bigint, lost bigint"
    made = {
        "catalogue": lake.spark.createDataFrame(
            [(0, 1, 1)], "item_id int, train_events bigint, known_events bigint"
        ),
        "user_positives": positives(lake, 0, item=5),
        "sequentiality": lake.spark.createDataFrame([(2, 0, 1, 1, 0)], counted),
    }

    def make(run_id: str, stage: str, table: str, *sources: str) -> None:
        with run(lake, run_id, stage) as maker:
            for source in sources:
                maker.read(source)
            maker.write(table, made[table])

    def require(*tables: str) -> None:
        with run(lake, f"r-{time.monotonic()}", "reader") as reader:
            reader.require_one_generation("catalogue", *tables)

    make("day1", "count", "catalogue")
    with pytest.raises(MissingTable, match="user_positives"):
        require("user_positives")
    make("day1", "positives", "user_positives", "catalogue")
    make("day1", "rules", "sequentiality", "user_positives")
    require("user_positives", "sequentiality")
    make("day2", "count", "catalogue")
    told = "catalogue are of run day2, but run day1 made {} of others: run the {}"
    for table, stages in (
        ("user_positives", "stage positives"),
        ("sequentiality", "stages positives, rules"),
    ):
        with pytest.raises(LakeError, match=told.format(table, stages)):
            require(table)
    make("day2", "positives", "user_positives", "catalogue")
    with pytest.raises(LakeError, match=told.format("sequentiality", "stage rules")):
        require("user_positives", "sequentiality")
    make("day2", "rules", "sequentiality", "user_positives")
    require("user_positives", "sequentiality")


def test_other_settings_make_everything_anew(lake: Lake) -> None:
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a"))
    assert new_users(lake, "c1") is None
    with Run(lake, "consumer", "c2", config_hash="other") as consumer:
        assert consumer.read_new("user_ids") is None


def test_modes_have_tables_of_their_own(lake: Lake, spark: SparkSession) -> None:
    serve = Lake(spark, lake.location, "serve")
    assert lake.address("ranks/slim") != serve.address("ranks/slim")
    assert lake.address("catalogue") != serve.address("catalogue")
    assert lake.address("events") == serve.address("events")


def test_table_of_the_other_mode_is_refused(lake: Lake, spark: SparkSession) -> None:
    lake.create("ranks/slim")
    serve = Lake(spark, lake.location, "serve")
    Path(serve.address("ranks/slim")).parent.mkdir(parents=True)
    Path(lake.address("ranks/slim")).rename(serve.address("ranks/slim"))
    with pytest.raises(LakeError, match="backtest"):
        serve.create("ranks/slim")


def test_a_table_of_all_models_is_refused_beside_parts(lake: Lake) -> None:
    old = Table(**{**schema.TABLES["ranks"].__dict__, "scope": "mode"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(schema.TABLES, "ranks", old)
        Lake(lake.spark, lake.location, lake.mode).create("ranks")
    with pytest.raises(LakeError, match="kept all models in one: remove it"):
        lake.create("ranks/slim")


def test_migration_adds_columns_that_old_rows_read_as_null(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a"))
    old = schema.TABLES["user_ids"]
    added = Column("country", "string", "where the user lives")
    new = Table(**{**old.__dict__, "migrations": (Migration(2, (added,)),)})
    monkeypatch.setitem(schema.TABLES, "user_ids", new)
    lake = Lake(lake.spark, lake.location, lake.mode)
    with run(lake, "r2") as second:
        rows = second.read("user_ids").drop("run_id").collect()
        assert [row.country for row in rows] == [None]
        df = lake.spark.createDataFrame(
            [("b", 1, "nl")], "user string, user_id int, country string"
        )
        second.write("user_ids", df, "append")
    found = {row.user: row.country for row in lake.load("user_ids").collect()}
    assert found == {"a": None, "b": "nl"}


def test_newer_schema_is_refused(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    old = schema.TABLES["user_ids"]
    newer = Table(**{**old.__dict__, "migrations": (Migration(2, (Column("x", "int", "x"),)),)})
    monkeypatch.setitem(schema.TABLES, "user_ids", newer)
    lake.create("user_ids")
    monkeypatch.setitem(schema.TABLES, "user_ids", old)
    lake = Lake(lake.spark, lake.location, lake.mode)
    with pytest.raises(LakeError, match="newer recs"):
        lake.create("user_ids")


def test_tables_in_a_catalog(spark: SparkSession, tmp_path: Path) -> None:
    spark.sql("CREATE SCHEMA IF NOT EXISTS recs_test_runs")
    lake = Lake(spark, Location(str(tmp_path / "work"), catalog="recs_test_runs"), "backtest")
    with run(lake) as first:
        first.write("user_ids", ids(lake, "a"))
    assert read(lake) == ["a"]
    spark.sql("DROP SCHEMA recs_test_runs CASCADE")
