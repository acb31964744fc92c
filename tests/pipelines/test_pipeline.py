"""From raw files to recommendations and metrics, as a user runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.cli import STAGE_COMMANDS, main
from pipelines.run import all_stages, open_lake, run_stages, stages_named, stages_of
from recs import readers
from recs.config import Config, ConfigError
from recs.data.ingest import TooManyRejects
from recs.lake import Lake, LakeError
from recs.ledger import Ledger
from recs.runs import MissingTable
from recs.slim.fit import NotConverged
from tests.pipelines.delivery import configurer, deliver, make_delivery

Configure = Callable[..., Config]


def run(config: Config, *names: str) -> tuple[Lake, dict]:
    lake = open_lake(config)
    stages = stages_named(config, *names) if names else stages_of(config)
    return lake, run_stages(stages, config, lake).document()


def committed(lake: Lake, table: str, *columns: str) -> list[tuple]:
    rows = readers.read(lake, table)
    return sorted(tuple(row) for row in rows.select(*(columns or rows.columns)).collect())


@pytest.fixture(scope="module")
def finished(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Configure, Lake, dict]:
    """A lake with one finished backtest; tests may add to it, not change what they read."""
    folder = tmp_path_factory.mktemp("finished")
    configure = configurer(make_delivery(folder / "data"), folder / "lake")
    return configure, *run(configure("run_id=first"))


@pytest.mark.planner
def test_events_become_recommendations_and_metrics(finished: tuple[Configure, Lake, dict]) -> None:
    configure, lake, document = finished
    assert set(document["seconds"]) == {stage.label for stage in stages_of(configure())}
    values = {(m["model"], m["metric"], m["k"]): m["value"] for m in document["metrics"]}
    assert values["slim", "hr", 5] > values["popularity", "hr", 5]
    assert {row[0] for row in committed(lake, "quarantine", "reason")} == {"null_user"}
    assert len(committed(lake, "items", "item")) == 20
    lists = committed(lake, "recommendations", "model", "user", "item", "run_id")
    assert {row[3] for row in lists} == {"first"}
    # Even users live on the left items: SLIM never shows them the others.
    for model, user, item, _ in lists:
        if model == "slim":
            assert (int(user[4:]) % 2 == 0) == (int(item[4:]) < 10)
    assert {row[0] for row in committed(lake, "metrics", "model_version")} == {"first"}


def test_differences_are_of_the_newest_run(finished: tuple[Configure, Lake, dict]) -> None:
    _, lake, _ = finished
    found = committed(lake, "metric_differences", "model", "baseline")
    assert set(found) == {("slim", "popularity")}


def test_a_missed_gate_fails_after_all_is_written_and_shown(
    finished: tuple[Configure, Lake, dict], capsys: pytest.CaptureFixture[str]
) -> None:
    configure, lake, document = finished
    config = configure()
    given = [f"data={config.data}", f"root={config.root}", "run_id=gated", "--json"]
    given.append("evaluate.ks=[5]")
    gate = "evaluate.gates=[{model: slim, metric: hr, k: 5, at_least: 1.01}]"
    file = f"{config.data}/tiny.yaml"
    assert main(["rank", "--config", file, *given]) == 0
    capsys.readouterr()
    assert main(["compare", "--config", file, *given, gate]) == 3
    shown = capsys.readouterr()
    assert "hr@5 of slim (full) is" in shown.err and "below 1.01" in shown.err
    assert json.loads(shown.out.splitlines()[-1])["metrics"]
    newest = Ledger(lake).newest("compare")
    assert newest is not None and newest.run_id == "gated"
    # A run that is asked for again tells of itself, not of the newest.
    assert run(configure("run_id=first"), "compare")[1]["metrics"] == document["metrics"]


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        ("recommend", "evaluate.split=validation", "again with evaluate.split=validation"),
        ("rank", "evaluate.split=validation", "again with evaluate.split=validation"),
        ("recommend/slim", "slim.values=weight", "fit/slim was last .* another slim.values: run"),
        ("rank", "recommend.exclude_seen=false", "popularity was .* another recommend.exclude_"),
        ("compare", "evaluate.ks=[3]", "rank/popularity was last run with another evaluate.ks"),
    ],
)
def test_what_was_made_for_another_measurement_is_refused(
    finished: tuple[Configure, Lake, dict], stage: str, given: str, message: str
) -> None:
    configure, _, _ = finished
    with pytest.raises(LakeError, match=message):
        run(configure(given), stage)


def test_lists_of_another_fit_are_not_measured(
    finished: tuple[Configure, Lake, dict], tmp_path: Path
) -> None:
    configure, _, _ = finished
    root = tmp_path / "copied"
    shutil.copytree(configure().root, root)
    run(configure(f"root={root}", "slim.l1=0.2"), "fit/slim")
    with pytest.raises(LakeError, match="the lists of slim are not of its last fit"):
        run(configure(f"root={root}"), "rank/slim")
    with pytest.raises(LakeError, match="the ranks of slim are not of its last fit"):
        run(configure(f"root={root}", "models=slim"), "compare")
    # Weights that know of events which are held out now are no start for those that must not.
    warm = (f"root={root}", "slim.warm_start=true", "slim.warm_tolerance=0.9")
    for given in ("evaluate.split=validation", "seed=7"):
        lake, _ = run(configure(*warm, given), "fit/slim")
        assert min(row[0] for row in committed(lake, "item_fits", "iterations")) > 0


def test_a_model_is_made_anew_beside_the_others(finished: tuple[Configure, Lake, dict]) -> None:
    configure, lake, _ = finished
    others = committed(lake, "recommendations/popularity"), committed(lake, "ranks/popularity")
    run(configure("models=slim", "run_id=again"), "recommend", "rank")
    assert {row[0] for row in committed(lake, "recommendations/slim", "run_id")} == {"again"}
    # Metrics are kept a run, so that one sees how they went.
    assert {"first", "again"} <= {row[0] for row in committed(lake, "metrics/slim", "run_id")}
    now = committed(lake, "recommendations/popularity"), committed(lake, "ranks/popularity")
    assert now == others
    told = json.loads((Path(lake.location.root) / "tables-backtest.json").read_text())["tables"]
    assert {f"ranks/{model}" for model in ("popularity", "slim")} <= set(told)


def test_a_past_day_is_made_of_the_events_of_then(
    finished: tuple[Configure, Lake, dict], tmp_path: Path
) -> None:
    configure, lake, _ = finished
    shutil.copytree(lake.location.root, tmp_path / "then")
    then = configure(f"root={tmp_path}/then", "as_of=2025-01-01T00:00:03Z")
    made, _ = run(then, "split")
    times = [row[0] for row in committed(made, "interactions", "timestamp")]
    assert len(times) == 30 * 3 and max(times) < then.as_of


def test_serve_mode_fits_on_everything_beside_the_backtest(
    finished: tuple[Configure, Lake, dict],
) -> None:
    configure, lake, _ = finished
    before = Ledger(lake).versions()
    served, document = run(configure("mode=serve"))
    assert document["metrics"] == []
    assert {row[0] for row in committed(served, "interactions", "split")} == {"train"}
    for stage in ("rank", "compare", "tune/slim"):
        with pytest.raises(ConfigError, match="mode serve holds nothing out"):
            run(configure("mode=serve"), stage)
    after = Ledger(lake).versions()
    assert all(after[key] == before[key] for key in before if key.startswith("backtest/"))


def test_results_do_not_depend_on_the_number_of_partitions(
    spark: SparkSession, finished: tuple[Configure, Lake, dict], tmp_path: Path
) -> None:
    configure, lake, document = finished
    spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        other, again = run(configure(f"root={tmp_path}/other", "run_id=first"))
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "2")
    assert again["metrics"] == document["metrics"]
    for table in ("interactions", "item_weights/slim", "recommendations/slim"):
        assert everything(other, table) == everything(lake, table), table


def everything(lake: Lake, table: str) -> list[str]:
    """All rows of a table as the run ``first`` left it."""
    rows = [
        row for row in Ledger(lake).rows() if (row["run_id"], row["state"]) == ("first", "finished")
    ]
    version = max(row["outputs"].get(lake.key(table), -1) for row in rows)
    return sorted(map(str, lake.load(table, version).collect()))


def test_same_run_id_is_taken_up_where_it_ended(spark: SparkSession, configured: Configure) -> None:
    config = configured("run_id=nightly")
    run(config, "ingest", "vocabulary")
    lake, _ = run(config, "ingest", "vocabulary", "split")
    stages = [row["stage"] for row in Ledger(lake).rows() if row["state"] == "finished"]
    assert stages == ["ingest", "vocabulary", "split"]
    with pytest.raises(LakeError, match="other settings"):
        run(configured("run_id=nightly", "events.max_reject_share=0.5"), "ingest")


def test_next_day_reads_only_what_is_new_and_keeps_numbers(
    spark: SparkSession, configured: Configure, delivery: Path, tmp_path: Path
) -> None:
    lake, _ = run(configured(), "ingest", "vocabulary")
    before = dict(committed(lake, "user_ids", "user", "user_id"))
    deliver(delivery, 2, range(25, 40))
    again = delivery / "events" / "day-01-again.csv"
    again.write_text((delivery / "events" / "day-01.csv").read_text())
    add(delivery / "right.csv", "item0,Of the later source,left")
    lake, _ = run(configured(), "ingest", "vocabulary")
    after = dict(committed(lake, "user_ids", "user", "user_id"))
    assert before.items() <= after.items() and len(after) == 40
    assert len(committed(lake, "events")) == 30 * 6 + 1 + 15 * 6 + 1
    newest = Ledger(lake).newest("ingest")
    assert newest is not None
    assert json.loads(newest.details["rejected"]) == {"duplicate": 181, "null_user": 2}
    # A copy knows what was read, and the lake it was copied from stays whole.
    copied = tmp_path / "copied"
    shutil.copytree(lake.location.root, copied)
    add(delivery / "left.csv", "item20,Title 20,left")
    for root in (copied, lake.location.root):
        lake, _ = run(configured(f"root={root}"), "ingest")
        newest = Ledger(lake).newest("ingest")
        assert newest is not None and newest.details["rejected"] == "{}"
        assert len(committed(lake, "events")) == 30 * 6 + 1 + 15 * 6 + 1
        # The earlier source has changed and is read again; what the later one says still counts.
        titles = dict(committed(lake, "items", "item", "title"))
        assert (titles["item0"], titles["item20"]) == ("Of the later source", "Title 20")


def add(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")


def test_too_many_rejects_leave_the_lake_as_it_was(
    spark: SparkSession, configured: Configure, delivery: Path
) -> None:
    lake, _ = run(configured(), "ingest")
    bad = delivery / "events" / "day-02.csv"
    bad.write_text("u,i,t,e\n" + "user1,item1,never,view\n" * 9)
    with pytest.raises(TooManyRejects, match="bad_time"):
        run(configured(), "ingest")
    assert len(committed(lake, "events")) == 181
    bad.write_text("u,i,t,e\n" + "user1,item1,2025-01-02T00:00:00Z,view\n")
    lake, _ = run(configured(), "ingest")
    assert len(committed(lake, "events")) == 182


def test_a_stage_without_its_input_names_the_table(
    spark: SparkSession, configured: Configure
) -> None:
    with pytest.raises(MissingTable, match="interactions"):
        run(configured(), "fit/slim")


def test_tuning_measures_the_grid_on_validation(finished: tuple[Configure, Lake, dict]) -> None:
    configure, _, _ = finished
    grid = ["tune_slim.l1=[0.1, 1000]", "tune_slim.l2=[0.1]", "evaluate.split=validation"]
    lake, _ = run(configure(*grid), "tune/slim")
    trials = committed(lake, "trials", "value", "nonzeros", "split")
    assert [trial[1] > 0 for trial in trials] == [False, True]
    assert trials[0][0] < trials[1][0] and trials[0][2] == "validation"


def test_a_cell_of_the_grid_that_does_not_converge_counts_as_0(
    finished: tuple[Configure, Lake, dict],
) -> None:
    configure, _, _ = finished
    given = ["tune_slim.l2=[0.1]", "evaluate.split=validation", "slim.max_iterations=1"]
    lake, _ = run(configure(*given, "tune_slim.l1=[0.1, 1000]"), "tune/slim")
    trials = committed(lake, "trials", "users", "value", "nonzeros")
    assert trials[0] == (0, 0.0, None)
    assert trials[1][0] == 30 and trials[1][2] == 0
    with pytest.raises(NotConverged, match=r"no trial of slim .* l1=0\.1, l2=0\.1: \d+ items"):
        run(configure(*given, "tune_slim.l1=[0.1]"), "tune/slim")


def test_command_line_prints_one_document(
    spark: SparkSession, delivery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", str(delivery / "tiny.yaml"), f"data={delivery}", f"root={tmp_path}/l"]
    assert main(["ingest", *given, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["tables"]["events"]["version"] >= 1
    assert set(document["seconds"]) == {"ingest"}
    assert main(["tables", *given, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["tables"]["events"]["rows"] == 181


def test_dry_run_touches_nothing(
    delivery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", str(delivery / "tiny.yaml"), f"data={delivery}", f"root={tmp_path}/l"]
    assert main(["run", *given, "--dry-run"]) == 0
    assert "fit/slim: reads" in capsys.readouterr().out
    assert not (tmp_path / "l").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--config", "none.yaml"], "none.yaml does not exist"),
        (["run", "--config", "{tiny}", "root=x", "slim.l=1"], "unknown key"),
        (["rank", "--config", "{tiny}", "root=x", "mode=serve"], "holds nothing out"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    delivery: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [text.format(tiny=delivery / "tiny.yaml") for text in arguments]
    assert main([*arguments, f"data={delivery}"]) == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1


def test_every_stage_has_its_command_and_job(configured: Configure) -> None:
    stages = all_stages(configured("models=popularity,slim,sasrec"))
    names = {stage.name for stage in stages}
    assert set(STAGE_COMMANDS) == names - {"tune", "sequentiality"}
    for stage in stages:
        if stage.model is None and stage.name in STAGE_COMMANDS:
            assert STAGE_COMMANDS[stage.name] == stage.help
    jobs = {path.stem for path in (Path(__file__).parents[2] / "jobs").glob("*.py")}
    assert jobs == names | {"run", "generate"}
