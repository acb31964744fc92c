"""Networks in the pipeline: trained through TorchDistributor, embedded, ranked like any model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import pipelines.networks
import pipelines.tune
from pipelines.cli import main
from pipelines.run import open_lake, run_stages, stages_named, stages_of
from pipelines.sequentiality import read_changes
from recs import readers
from recs.config import Config, ConfigError, load_config
from recs.lake import Lake, LakeError
from recs.ledger import Ledger
from recs.storage import write_file
from recs.training.dataset import open_training_set
from recs.training.feeds import petastorm_reads
from recs.training.launch import LaunchError, StartError, check
from recs.training.model_folder import load_model
from recs.training.settings import Network, Processes, Training, TrainingJob
from tests.pipelines.delivery import configurer, deliver, make_delivery

GIVEN = (
    "models=popularity,sasrec",
    "sequences.length=8",
    "export.lanes=2",
    "processes.count=2",
    "processes.threads=1",
    "networks.sasrec.training={epochs: 3, batch_size: 8}",
    "networks.sasrec.model.dim=16",
    "evaluate.protocols=[full, relevance]",
)
TUNE = (
    "networks.sasrec.tune={trials: 4, space: {model.dim: [8, 16]}}",
    "networks.sasrec.tune.space.training.optimizer.rate={low: 1e-3, high: 1e-1, log: true}",
)
Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def finished(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Configure, Lake, dict[str, Any]]:
    """A lake with one finished backtest of a network that two processes have trained."""
    folder = tmp_path_factory.mktemp("networks")
    configure = configurer(make_delivery(folder / "data"), folder / "lake")
    config = configure(*GIVEN, "run_id=first")
    lake = open_lake(config)
    return configure, lake, run_stages(stages_of(config), config, lake).document()


def rows_of(lake: Lake, table: str) -> list[dict[str, Any]]:
    return [row.asDict(recursive=True) for row in readers.read(lake, table).collect()]


def test_networks_end_in_metrics_and_lists(
    finished: tuple[Configure, Lake, dict[str, Any]],
) -> None:
    configure, lake, document = finished
    assert list(document["seconds"]) == [stage.label for stage in stages_of(configure(*GIVEN))]
    assert {"export", "train/sasrec", "embed/sasrec"} <= set(document["seconds"])
    assert {row["model"] for row in document["metrics"]} == {"popularity", "sasrec"}
    lists = [row for row in rows_of(lake, "recommendations") if row["model"] == "sasrec"]
    assert {row["model_version"] for row in lists} == {"first"}
    assert not any(row["fallback"] for row in lists)
    judged = {row["metric"] for row in document["metrics"] if row["protocol"] == "relevance"}
    assert judged == {"accuracy", "auc"}
    liked = [row for row in rows_of(lake, "judgements") if row["liked"]]
    targets = [row for row in rows_of(lake, "ranks") if row["protocol"] == "full"]
    assert len(liked) == len(targets) > 0


def test_scores_are_products_of_the_embeddings(
    finished: tuple[Configure, Lake, dict[str, Any]],
) -> None:
    _, lake, _ = finished
    users = {row["user_id"]: row for row in rows_of(lake, "user_embeddings")}
    items = {row["item_id"]: row for row in rows_of(lake, "item_embeddings")}
    assert len(items) == 20 and len(users) == 30
    for row in rows_of(lake, "recommendations"):
        if row["model"] == "sasrec":
            user, item = users[row["user_id"]], items[row["item_id"]]
            product = sum(a * b for a, b in zip(user["vector"], item["vector"], strict=True))
            assert row["score"] == pytest.approx(product + item["bias"], abs=1e-4)


def test_the_training_set_names_the_versions_it_was_made_of(
    finished: tuple[Configure, Lake, dict[str, Any]],
) -> None:
    _, lake, _ = finished
    (sasrec,) = rows_of(lake, "trainings")
    assert sasrec["metric"] == "ndcg@10" and sasrec["validation"] > 0
    done = Ledger(lake).newest("export")
    assert done is not None
    manifest = open_training_set(sasrec["training_set"]).manifest
    assert manifest.tables == done.inputs
    read_by = json.loads(sasrec["settings"])["training"]["feed"]
    assert read_by == ("petastorm" if petastorm_reads() else "arrow")
    _, versions = load_model(sasrec["path"])
    assert versions == {table: str(version) for table, version in done.inputs.items()}


def test_a_training_is_validated_by_what_evaluate_measures(
    finished: tuple[Configure, Lake, dict[str, Any]], tmp_path: Path
) -> None:
    configure, lake, _ = finished
    shutil.copytree(lake.location.root, tmp_path / "lake")
    given = ("evaluate.split=validation", "evaluate.ks=[10]", "recommend.k=10")
    config = configure(*GIVEN, f"root={tmp_path}/lake", *given)
    stages = stages_named(config, "fit", "embed", "recommend", "rank", "compare")
    metrics = run_stages(stages, config, open_lake(config)).document()["metrics"]
    (measured,) = (
        row["value"]
        for row in metrics
        if (row["model"], row["metric"], row["k"]) == ("sasrec", "ndcg", 10)
    )
    (training,) = rows_of(lake, "trainings")
    assert training["validation"] == pytest.approx(measured, abs=1e-6)


@pytest.mark.parametrize("hold_out", [True, False])
def test_validation_events_are_trained_on_if_nothing_is_held_out(
    finished: tuple[Configure, Lake, dict[str, Any]], tmp_path: Path, hold_out: bool
) -> None:
    configure, lake, _ = finished
    shutil.copytree(lake.location.root, tmp_path / "lake")
    given = (f"root={tmp_path}/lake", f"export.hold_out={hold_out}", "run_id=again")
    lake = open_lake(configure(*GIVEN, *given))
    config = configure(*GIVEN, *given)
    run_stages(stages_named(config, "export"), config, lake)
    exported = Ledger(lake).newest("export")
    assert exported is not None
    data = open_training_set(lake.location.training_set("backtest", exported.run_id))
    parts = data.manifest.parts
    assert sum(file.rows for file in parts["validation"]) == (30 if hold_out else 0)

    trained_on = ("train",) if hold_out else ("train", "validation")
    version = Ledger(lake).versions()[lake.key("interactions")]
    known = lake.load("interactions", version).where(F.col("split").isin(*trained_on))
    newest = known.groupBy("user_id").agg(F.max_by("item_id", "sequence").alias("item_id"))
    files = [pq.read_table(data.path(file.name)).to_pylist() for file in parts["train"]]
    assert {row["user_id"]: row["items"][-1] for rows in files for row in rows} == {
        row["user_id"]: row["item_id"] for row in newest.collect()
    }
    assert data.train_events().sum() == known.where("positive").count()


@pytest.fixture
def untrained(
    finished: tuple[Configure, Lake, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Configure:
    """Configurations of a copy of the finished lake, where training makes no model."""
    configure, lake, _ = finished
    shutil.copytree(lake.location.root, tmp_path / "lake")
    done: dict[str, Any] = {"validation": None, "best_epoch": 2, "epochs": 3, "updates": 12}
    done |= {"seconds": 1.0, "feed": "arrow"}
    monkeypatch.setattr(pipelines.networks, "launch", lambda spark, job: done)
    return lambda *given: configure(*GIVEN, f"root={tmp_path}/lake", *given)


def test_networks_trained_on_validation_events_cannot_be_embedded_for_them(
    untrained: Configure,
) -> None:
    config = untrained("export.hold_out=false")
    lake = open_lake(config)
    run_stages(stages_named(config, "export", "train"), config, lake)
    config = untrained("evaluate.split=validation")
    with pytest.raises(LakeError, match="export.hold_out=true"):
        run_stages(stages_named(config, "embed"), config, lake)


def test_checkpoints_go_when_a_training_is_committed(
    finished: tuple[Configure, Lake, dict[str, Any]],
) -> None:
    _, lake, _ = finished
    folder = Path(lake.location.model("backtest", "sasrec", "first"))
    assert (folder / "model").is_dir() and not (folder / "checkpoints").exists()


def test_a_run_that_finished_training_takes_it_over(
    finished: tuple[Configure, Lake, dict[str, Any]],
) -> None:
    configure, lake, _ = finished
    config = configure(*GIVEN, "run_id=first")
    run_stages(stages_named(config, "train"), config, lake)
    assert len(rows_of(lake, "trainings")) == 1


def test_shuffled_histories_are_measured(finished: tuple[Configure, Lake, dict[str, Any]]) -> None:
    configure, lake, document = finished
    given = ("sequentiality={shuffles: 1, min_count: 2, k: 5}", "run_id=shuffled")
    config = configure(*GIVEN, *given)
    done = run_stages(stages_named(config, "sequentiality"), config, lake).finished
    (row,) = rows_of(lake, "model_sequentiality")
    (ndcg,) = (
        metric["value"]
        for metric in document["metrics"]
        if (metric["model"], metric["metric"], metric["k"]) == ("sasrec", "ndcg", 5)
    )
    assert (row["model"], row["k"], row["ndcg"]) == ("sasrec", 5, pytest.approx(ndcg))
    assert 0 < row["jaccard"] < 1 and row["shuffled_ndcg"] != row["ndcg"]
    (shown,) = read_changes(lake, done["sequentiality"])
    assert shown["jaccard"] == pytest.approx(row["jaccard"], abs=1e-4)


@pytest.mark.slow
def test_new_events_embed_only_the_users_that_have_them(
    finished: tuple[Configure, Lake, dict[str, Any]], tmp_path: Path
) -> None:
    configure, lake, _ = finished
    shutil.copytree(lake.location.root, tmp_path / "lake")
    given = (*GIVEN, f"root={tmp_path}/lake")
    config = configure(*given, "run_id=second")
    deliver(Path(str(config.data)), 2, range(28, 32))
    lake = open_lake(config)
    run_stages(stages_named(config, "ingest", "vocabulary", "split"), config, lake)
    for stages, missing in (
        ((), "run the stage sequences"),
        (("sequences",), "run the stage embed"),
        (("embed",), "run export, train/sasrec, embed/sasrec"),
    ):
        run_stages(stages_named(config, *stages), config, lake)
        with pytest.raises(LakeError, match=missing):
            run_stages(stages_named(config, "sequentiality"), config, lake)
    rows = rows_of(lake, "user_embeddings")
    assert len(rows) == 32 == len({row["user_id"] for row in rows})
    assert sum(row["run_id"] == "second" for row in rows) == 4
    assert {row["model_version"] for row in rows} == {"first"}
    config = configure(*given, "run_id=third", "rebuild=true")
    run_stages(stages_named(config, "embed"), config, lake)
    again = {row["user_id"]: row for row in rows_of(lake, "user_embeddings")}
    for row in rows:
        assert again[row["user_id"]]["last"] == row["last"]
        assert again[row["user_id"]]["vector"] == pytest.approx(row["vector"], abs=1e-5)


def test_stages_out_of_order_say_what_to_run(spark: SparkSession, configured: Configure) -> None:
    config = configured(*GIVEN)
    lake = open_lake(config)
    with pytest.raises(LakeError, match="run the stage export first"):
        run_stages(stages_named(config, "train"), config, lake)
    with pytest.raises(LakeError, match="run the stage train/sasrec first"):
        run_stages(stages_named(config, "embed"), config, lake)
    with pytest.raises(ConfigError, match="none of models popularity, slim has a stage 'train'"):
        stages_named(configured(), "train")


@pytest.mark.parametrize(
    "given, message",
    [
        ("models=sasreck", "the nearest is 'sasrec'"),
        ("networks.slim.loss.name=bce", "no network is called 'slim'"),
        ("networks.sasrec.training.epochs=0", "networks.sasrec.training.epochs"),
        ("networks.sasrec.trainings.epochs=1", "nearest known key is 'training'"),
    ],
)
def test_configurations_that_cannot_be_are_refused(
    delivery: Path, given: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(delivery / "tiny.yaml", [f"data={delivery}", "root=x", given])


class TestLaunch:
    @pytest.fixture
    def job(self, finished: tuple[Configure, Lake, dict[str, Any]], tmp_path: Path) -> TrainingJob:
        _, lake, _ = finished
        return TrainingJob(
            name="sasrec",
            training_set=rows_of(lake, "trainings")[0]["training_set"],
            folder=str(tmp_path / "model"),
            network=Network(training=Training(batch_size=8, feed="arrow")),
            processes=Processes(),
            seed=1,
        )

    @pytest.mark.parametrize(
        "processes, message",
        [
            (Processes(count=4), "export.lanes"),
            (Processes(count=2, local=False, gpu=True), "spark.task.resource.gpu.amount"),
            (Processes(gpu=True), "processes.gpu=false"),
        ],
    )
    def test_what_cannot_start_is_refused(
        self, spark: SparkSession, job: TrainingJob, processes: Processes, message: str
    ) -> None:
        if processes.gpu and processes.local:
            torch = pytest.importorskip("torch")
            if torch.cuda.is_available():
                pytest.skip("there is a GPU")
        with pytest.raises(LaunchError, match=message):
            check(spark, job.model_copy(update={"processes": processes}))


@pytest.mark.parametrize(
    "given, message",
    [
        ("networks.sasrec.model.dims=8", "'networks.sasrec.model': sasrec has no setting 'dims'"),
        ("networks.sasrec.loss.name=hinge", "'networks.sasrec.loss': .*hinge"),
        ("processes.count=3", "'networks.sasrec.training': .* 3 processes"),
        ("networks.sasrec.training.batch_size=9", "'networks.sasrec.training': .* 2 processes"),
    ],
)
def test_settings_that_cannot_be_are_told_before_anything_runs(
    spark: SparkSession, configured: Callable[..., Config], given: str, message: str
) -> None:
    config = configured(*GIVEN, given)
    lake = open_lake(config)
    with pytest.raises(ConfigError, match=message):
        run_stages(stages_of(config), config, lake)
    assert Ledger(lake).rows() == []


def test_each_network_is_of_the_run_that_trained_it(untrained: Configure) -> None:
    config = untrained("models=popularity,gru4rec", "run_id=second")
    lake = open_lake(config)
    run_stages(stages_named(config, "train"), config, lake)

    config = untrained("models=sasrec", "run_id=third")
    run_stages(stages_named(config, "recommend"), config, lake)
    lists = rows_of(lake, "recommendations")
    assert {row["model_version"] for row in lists if row["model"] == "sasrec"} == {"first"}
    again = untrained("models=popularity,gru4rec", "run_id=fourth")
    with pytest.raises(LakeError, match="gru4rec has no vectors: run the stage embed"):
        run_stages(stages_named(again, "recommend"), again, lake)


def test_embeddings_are_of_the_newest_events(
    finished: tuple[Configure, Lake, dict[str, Any]],
) -> None:
    _, lake, _ = finished
    read = {row["user_id"]: row["last"] for row in rows_of(lake, "user_embeddings")}
    versions = Ledger(lake).versions()
    interactions = lake.load("interactions", versions[lake.key("interactions")])
    known = interactions.where("split <> 'test'").groupBy("user_id")
    newest = known.agg(F.max("sequence").alias("last")).collect()
    assert read == {row["user_id"]: row["last"] for row in newest}


class TestTuning:
    """On the training set of the finished run, whose stages are not run again."""

    @pytest.fixture
    def command(self, finished: tuple[Configure, Lake, dict[str, Any]]) -> list[str]:
        configure, _, _ = finished
        config = configure()
        data = ["--config", f"{config.data}/tiny.yaml", f"data={config.data}"]
        given = [f"root={config.root}", "run_id=first", *GIVEN, *TUNE]
        return ["tune", "sasrec", *data, *given, "--json"]

    def test_a_search_that_was_stopped_goes_on_with_the_trials_that_are_left(
        self,
        command: list[str],
        finished: tuple[Configure, Lake, dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        _, lake, _ = finished
        jobs: list[TrainingJob] = []

        def train(spark: SparkSession, job: TrainingJob) -> dict[str, Any]:
            jobs.append(job)
            write_file(f"{job.checkpoints}/latest", b"step-1")
            if len(jobs) == 2:
                raise StartError("no slots")
            write_file(f"{job.folder}/model/weights", b"weights")
            return {"validation": job.network.training.optimizer.rate, "seconds": 1.0}

        monkeypatch.setattr(pipelines.tune, "launch", train)
        assert main(command) == 2
        assert "no slots" in capsys.readouterr().err
        assert main(command) == 0
        first, begun, *rest = jobs
        assert rest[0] == begun and len(rest) == 3
        assert first.training_set == rows_of(lake, "trainings")[0]["training_set"]
        assert first.network.training.epochs == 3 and first.processes.count == 2

        told = capsys.readouterr()
        trials, shown = json.loads(told.out)["trials"], told.err.splitlines()
        rates = [job.network.training.optimizer.rate for job in (first, *rest)]
        assert [trial["value"] for trial in trials] == sorted(rates, reverse=True)
        best = trials[0]
        of = [best[key] for key in ("model", "protocol", "split", "metric", "k", "users")]
        assert of == ["sasrec", "full", "validation", "ndcg", 10, 30]
        keys = ["model.dim", "training.optimizer.rate"]
        (header,) = (line.split() for line in shown if line.startswith(keys[0]))
        assert header == [*keys, "protocol", "metric", "k", "value", "seconds"]
        assert "best: " + " ".join(f"networks.sasrec.{k}={best[k]}" for k in keys) in shown
        (kept,) = Path(lake.location.root).glob("studies/backtest/sasrec/first/trial-*")
        assert f"model: {kept}/model" in shown and (kept / "model" / "weights").is_file()
        assert not (kept / "checkpoints").exists()

        assert main(command) == 0  # finished: nothing is trained again
        assert len(jobs) == 5
        assert main([*command, "networks.sasrec.tune.trials=5"]) == 2
        assert "take another run_id" in capsys.readouterr().err

    @pytest.mark.slow
    def test_trials_are_trainings(self, finished: tuple[Configure, Lake, dict[str, Any]]) -> None:
        configure, _, _ = finished
        given = (*GIVEN, *TUNE, "models=sasrec", "networks.sasrec.tune.trials=2")
        config = configure(*given, "run_id=second")
        lake = open_lake(config)
        run_stages(stages_named(config, "tune"), config, lake)
        trials = rows_of(lake, "trials")
        assert len(trials) == 2 and all(0 < trial["value"] <= 1 for trial in trials)
        assert all(trial["seconds"] > 0 for trial in trials)
        done = Ledger(lake).newest("tune", "sasrec")
        assert done is not None
        network, _ = load_model(done.details["model"])
        best = max(trials, key=lambda trial: trial["value"])
        assert network.item_vectors().shape == (20, int(best["settings"]["model.dim"]))
