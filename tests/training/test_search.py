"""The search of settings: what is declared, what is drawn, and a search that was killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages.journal import JournalFileBackend
from pydantic import ValidationError

import recs.training.launch
import recs.training.search
import recs.training.worker
from recs.storage import write_file
from recs.training.launch import (
    DivergedError,
    LaunchError,
    OutOfMemoryError,
    StartError,
    launch,
)
from recs.training.search import StudyError, Trial, check_space, search
from recs.training.settings import Network, Processes, Training, TrainingJob
from recs.training.space import Tune, with_settings
from recs.training.worker import OUT_OF_MEMORY

SPACE = {
    "model.dim": [16, 32],
    "model.blocks": {"low": 1, "high": 3},
    "model.dropout": {"low": 0.1, "high": 0.5},
    "training.optimizer.rate": {"low": 1e-4, "high": 1e-2, "log": True},
}


def tune_of(space: Mapping[str, Any] = SPACE, trials: int = 12) -> Tune:
    return Tune.model_validate({"trials": trials, "space": space})


def job_of(folder: Path, seed: int = 1, **model: Any) -> TrainingJob:
    return TrainingJob(
        name="sasrec",
        training_set="set",
        folder=str(folder),
        network=Network(model={"heads": 1, **model}, training=Training(epochs=3)),
        processes=Processes(),
        seed=seed,
    )


class Trainer:
    """Stands for training: notes what it is given, leaves a model, is best at 0.3 of dropout."""

    def __init__(self) -> None:
        self.jobs: list[TrainingJob] = []

    def __call__(self, job: TrainingJob) -> dict[str, Any]:
        self.jobs.append(job)
        write_file(f"{job.folder}/model/weights", b"weights")
        value = 1 - abs(job.network.model.get("dropout", 0.3) - 0.3)
        return {"validation": value, "seconds": 2.0}


def told(trials: list[Trial]) -> list[tuple[dict[str, Any], float]]:
    return [(trial.settings, trial.value) for trial in trials]


class TestSpace:
    @pytest.mark.parametrize(
        "space, message",
        [
            ({}, "at least 1 item"),
            ({"model.dim": []}, "at least 1 item"),
            ({"model.dim": 64}, "give a list of values, or a range"),
            ({"model.dim": {"from": 1, "to": 2}}, "give a list of values, or a range"),
            ({"model.dropout": {"low": 0.5, "high": 0.1}}, "low 0.5 is not below high 0.1"),
            ({"model.dropout": {"low": 0.0, "high": 0.5, "log": True}}, "low above 0"),
            ({"dim": [64]}, "'dim' is no setting of a network: keys begin with model., loss."),
            ({"model": [64]}, "'model' is no setting of a network"),
            ({"training.validation.k": [5, 10]}, "trials are compared by training.validation.k"),
        ],
    )
    def test_declarations_that_cannot_be_are_refused(
        self, space: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValidationError, match=message):
            tune_of(space)

    def test_nested_keys_are_dotted_ones_and_replace_them(self) -> None:
        tune = tune_of({"model.dim": [8], "model": {"dim": [16], "dropout": [0.1]}})
        assert tune.space == {"model.dim": [16], "model.dropout": [0.1]}

    def test_settings_are_put_in_the_network(self) -> None:
        given = Network(model={"dim": 64}, training=Training(epochs=3))
        made = with_settings(
            given,
            {
                "model.dim": 8,
                "loss.name": "bce",
                "loss.sampler.name": "uniform",
                "training.optimizer.clip": None,
            },
        )
        assert made.model == {"dim": 8} and given.model == {"dim": 64}
        assert made.loss == {"name": "bce", "sampler": {"name": "uniform"}}
        assert made.training.optimizer.clip is None and made.training.epochs == 3

    @pytest.mark.parametrize(
        "space, message",
        [
            ({"model.dims": [8, 16]}, "sasrec has no setting 'dims'; did you mean 'dim'?"),
            ({"model.dim.size": [8]}, "model.dim.size: there are no settings below 64"),
            ({"model.dropout": {"low": 0.5, "high": 1.5}}, "sasrec.dropout: .*less than 1"),
            ({"model.dropout": {"low": 0, "high": 1}}, "less than 1"),
            ({"training.optimiser.rate": [0.1]}, "'optimiser'; the nearest is 'optimizer'"),
            ({"training.epochs": [0]}, "training.epochs: .*greater than 0"),
            ({"training.epochs": {"low": 1.0, "high": 9.0}}, "training.epochs: .*valid integer"),
            (
                {"training.optimizer.weight_decay": {"low": 0, "high": 1}},
                "give it as {low: 0.0, high: 1.0}",
            ),
            ({"training.batch_size": {"low": 64, "high": 128}}, "multiple of 16"),
            ({"loss.name": ["bce", "bcee"]}, "bcee"),
            ({"loss.name": ["gbce", "bce"], "loss.calibration": [0.5]}, "loss.*calibration"),
            ({"model.dim": [64, 96], "model.heads": [2, 64]}, "dim 96 .* heads 64: change one"),
        ],
    )
    def test_what_cannot_be_is_found_before_anything_runs(
        self, space: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            check_space("sasrec", Network(model={"dim": 64}), tune_of(space), lanes=16)

    def test_what_can_be_is_taken(self) -> None:
        more = {"loss.name": ["gbce"], "loss.calibration": [0.5, 0.75]}
        check_space("sasrec", Network(), tune_of({**SPACE, **more}), lanes=16)


class TestSearch:
    def test_trials_lie_in_the_space_and_keep_the_other_settings(self, tmp_path: Path) -> None:
        trainer = Trainer()
        trials = search(job_of(tmp_path), tune_of(trials=30), trainer)
        assert len(trials) == len(trainer.jobs) == 30
        for job in trainer.jobs:
            model = job.network.model
            assert model["dim"] in (16, 32) and 0.1 <= model["dropout"] <= 0.5
            assert model["blocks"] in (1, 2, 3) and isinstance(model["blocks"], int)
            assert model["heads"] == 1 and job.network.training.epochs == 3
            assert 1e-4 <= job.network.training.optimizer.rate <= 1e-2
        values = [trial.value for trial in trials]
        assert values == sorted(values, reverse=True)
        assert {job.network.model["blocks"] for job in trainer.jobs} == {1, 2, 3}

    def test_only_the_best_model_is_kept(self, tmp_path: Path) -> None:
        best, *others = search(job_of(tmp_path), tune_of(), Trainer())
        assert (Path(best.folder) / "model" / "weights").is_file()
        assert not any(Path(trial.folder).exists() for trial in others)

    def test_the_seed_makes_the_trials(self, tmp_path: Path) -> None:
        once = search(job_of(tmp_path / "once"), tune_of(), Trainer())
        again = search(job_of(tmp_path / "again"), tune_of(), Trainer())
        other = search(job_of(tmp_path / "other", seed=2), tune_of(), Trainer())
        assert told(once) == told(again)
        assert not any(trial in told(once) for trial in told(other))

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("storage"), StartError("GPU")])
    def test_a_training_that_was_stopped_is_taken_up_in_its_folder(
        self, tmp_path: Path, error: BaseException
    ) -> None:
        trainer, begun = Trainer(), []

        def stopped(job: TrainingJob) -> dict[str, Any]:
            begun.append(job)
            if len(begun) >= 5:
                raise error
            return trainer(job)

        for _ in range(3):  # however often: it is no fault of the trial's
            with pytest.raises(type(error)):
                search(job_of(tmp_path / "broken"), tune_of(), stopped)
        rest = Trainer()
        trials = search(job_of(tmp_path / "broken"), tune_of(), rest)
        assert rest.jobs[0] == begun[-1]
        assert len(rest.jobs) == 12 - 4
        assert told(trials) == told(search(job_of(tmp_path / "whole"), tune_of(), Trainer()))

    def test_killed_at_any_write_a_search_ends_as_an_unbroken_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tune = tune_of(trials=3)
        written: list[str] = []
        last = -1

        def write_or_die(uri: str, content: bytes) -> None:
            if len(written) == last:
                raise KeyboardInterrupt
            written.append(uri)
            write_file(uri, content)

        monkeypatch.setattr(recs.training.search, "write_file", write_or_die)
        unbroken = search(job_of(tmp_path / "whole"), tune, Trainer())
        writes = len(written)
        assert writes > 20
        for last in range(writes):
            written.clear()
            folder = tmp_path / f"killed-{last}"
            with pytest.raises(KeyboardInterrupt):
                search(job_of(folder), tune, Trainer())
            written.append("the file that was not written")
            trials = search(job_of(folder), tune, Trainer())
            assert told(trials) == told(unbroken)
            kept = [path.name for path in folder.iterdir() if path.is_dir()]
            assert kept == [Path(trials[0].folder).name]

    def test_a_finished_search_trains_nothing_and_takes_further_trials(
        self, tmp_path: Path
    ) -> None:
        search(job_of(tmp_path), tune_of(trials=4), Trainer())
        again, more = Trainer(), Trainer()
        assert len(search(job_of(tmp_path), tune_of(trials=4), again)) == 4
        assert len(search(job_of(tmp_path), tune_of(trials=6), more)) == 6
        assert len(again.jobs) == 0 and len(more.jobs) == 2

    def test_a_study_of_other_settings_is_refused(self, tmp_path: Path) -> None:
        search(job_of(tmp_path), tune_of(trials=1), Trainer())
        for job, tune in (
            (job_of(tmp_path, seed=2), tune_of()),
            (job_of(tmp_path, positions="fixed"), tune_of()),
            (job_of(tmp_path), tune_of({"model.dim": [16]})),
        ):
            with pytest.raises(StudyError, match="take another run_id"):
                search(job, tune, Trainer())

    def test_the_same_settings_are_trained_once(self, tmp_path: Path) -> None:
        trainer = Trainer()
        trials = search(job_of(tmp_path), tune_of({"model.dropout": [0.2, 0.3]}), trainer)
        assert len(trials) == 12 and len(trainer.jobs) == 2
        assert {trial.value for trial in trials} == {0.9, 1.0}
        assert sum(trial.seconds for trial in trials) == 4.0
        assert Path(trials[0].folder).is_dir()

    def test_a_training_that_diverged_counts_as_nothing_found(self, tmp_path: Path) -> None:
        trainer = Trainer()

        def diverging(job: TrainingJob) -> dict[str, Any]:
            if job.network.training.optimizer.rate > 1e-3:
                raise DivergedError("the loss is nan")
            return trainer(job)

        trials = search(job_of(tmp_path), tune_of(), diverging)
        failed = [trial for trial in trials if trial.failure]
        assert len(trials) == 12 and len(failed) == 12 - len(trainer.jobs) > 0
        assert all(trial.value == 0 and "nan" in str(trial.failure) for trial in failed)
        assert trials[0].failure is None

    @pytest.mark.parametrize(
        "error, attempts", [(OutOfMemoryError("no memory"), 1), (LaunchError("killed"), 2)]
    )
    def test_a_trial_that_cannot_be_trained_holds_up_no_search(
        self, tmp_path: Path, error: LaunchError, attempts: int
    ) -> None:
        trainer, failed = Trainer(), []

        def train(job: TrainingJob) -> dict[str, Any]:
            if job.network.model["dim"] == 64:
                failed.append(job.folder)
                raise error
            return trainer(job)

        space = {"model.dim": [16, 32, 64], "model.dropout": {"low": 0.1, "high": 0.5}}
        trials = search(job_of(tmp_path), tune_of(space), train)
        reasons = {trial.folder: trial.failure for trial in trials if trial.failure}
        assert reasons and set(reasons.values()) == {str(error)}
        assert {folder: failed.count(folder) for folder in failed} == dict.fromkeys(
            reasons, attempts
        )
        assert len(trials) == 12 == len(reasons) + len(trainer.jobs)
        assert trials[0].failure is None and not any(Path(folder).exists() for folder in reasons)
        assert told(search(job_of(tmp_path), tune_of(space), train)) == told(trials)

    def test_attempts_that_come_further_are_no_failures(self, tmp_path: Path) -> None:
        """Each is killed after a checkpoint, the last two after none."""
        attempts = []

        def train(job: TrainingJob) -> dict[str, Any]:
            attempts.append(job)
            if len(attempts) <= 5:
                write_file(f"{job.checkpoints}/step-{len(attempts)}/manifest.json", b"")
            raise LaunchError("killed")

        with pytest.raises(StudyError, match="no trial of sasrec .*: killed"):
            search(job_of(tmp_path), tune_of(trials=1), train)
        assert len(attempts) == 5 + 2

    def test_a_trial_that_kills_the_search_itself_is_begun_twice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer, dead = Trainer(), False

        def write(uri: str, content: bytes) -> None:
            if dead:
                raise KeyboardInterrupt
            write_file(uri, content)

        def train(job: TrainingJob) -> dict[str, Any]:
            nonlocal dead
            if not trainer.jobs:
                dead = True  # what is killed writes nothing more
                raise KeyboardInterrupt
            return trainer(job)

        monkeypatch.setattr(recs.training.search, "write_file", write)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                search(job_of(tmp_path), tune_of(trials=3), train)
            dead = False
        *_, worst = search(job_of(tmp_path), tune_of(trials=3), Trainer())
        assert worst.number == 0 and "was killed 2 times" in str(worst.failure)

    def test_any_model_is_better_than_none(self, tmp_path: Path) -> None:
        def found_nothing(job: TrainingJob) -> dict[str, Any]:
            if job.network.model["dim"] == 16:
                raise DivergedError("the loss is nan")
            write_file(f"{job.folder}/model/weights", b"weights")
            return {"validation": 0.0, "seconds": 1.0}

        best, *_ = search(job_of(tmp_path), tune_of(), found_nothing)
        assert best.failure is None and Path(best.folder).is_dir()

    def test_settings_that_the_processes_cannot_train_are_a_trial_that_failed(
        self, tmp_path: Path
    ) -> None:
        job = job_of(tmp_path).model_copy(update={"processes": Processes(count=2)})
        space = {"training.batch_size": [64, 1]}
        trials = search(job, tune_of(space, trials=6), Trainer())
        failures = {trial.settings["training.batch_size"]: trial.failure for trial in trials}
        assert failures[64] is None and "batch" in str(failures[1])

    def test_where_all_diverged_the_reason_is_told(self, tmp_path: Path) -> None:
        def diverging(job: TrainingJob) -> dict[str, Any]:
            raise DivergedError("the loss is nan")

        with pytest.raises(StudyError, match="no trial of sasrec .* the loss is nan"):
            search(job_of(tmp_path), tune_of(trials=2), diverging)

    def test_the_study_is_a_journal_that_optuna_reads(self, tmp_path: Path) -> None:
        trials = search(job_of(tmp_path), tune_of(), Trainer())
        storage = optuna.storages.JournalStorage(JournalFileBackend(f"{tmp_path}/study.jsonl"))
        study = optuna.load_study(study_name="sasrec", storage=storage)
        assert study.best_value == trials[0].value and len(study.trials) == 12


@pytest.mark.parametrize(
    "said, kind",
    [
        ("TrainingError: the loss is nan", DivergedError),
        ("OutOfMemoryError: CUDA out of memory.", OutOfMemoryError),
        ("ValueError: no dims", LaunchError),
    ],
)
@pytest.mark.parametrize("raises", [True, False])
def test_a_launch_tells_why_a_process_failed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    kind: type[LaunchError],
    raises: bool,
) -> None:
    class Distributor:
        def __init__(self, **options: Any) -> None: ...

        def run(self, script: str, uri: str) -> None:
            write_file(f"{tmp_path}/errors/rank-0.txt", f"{said}\n{'trace ' * 1000}".encode())
            if raises:
                raise RuntimeError("torchrun failed")

    monkeypatch.setattr("pyspark.ml.torch.distributor.TorchDistributor", Distributor)
    monkeypatch.setattr(recs.training.launch, "check", lambda spark, job: None)
    with pytest.raises(LaunchError) as error:
        launch(None, job_of(tmp_path))  # type: ignore[arg-type]
    assert type(error.value) is kind
    if kind is not LaunchError:
        assert said.rstrip(".").partition(": ")[2] in str(error.value)
        assert "trace" not in str(error.value)


@pytest.mark.parametrize(
    "error, kind",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), OUT_OF_MEMORY),
        (MemoryError(), OUT_OF_MEMORY),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), OUT_OF_MEMORY),
        (ValueError("no dims"), "ValueError"),
    ],
)
def test_a_process_tells_that_memory_is_lacking_by_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    def train(*given: Any) -> None:
        raise error

    monkeypatch.setattr(recs.training.worker, "train", train)
    monkeypatch.setattr(recs.training.worker, "_keep_freed_memory", lambda: None)
    write_file(f"{tmp_path}/job.json", job_of(tmp_path).model_dump_json().encode())
    with pytest.raises(type(error)):
        recs.training.worker.main([f"{tmp_path}/job.json"])
    assert (tmp_path / "errors" / "rank-0.txt").read_text().startswith(f"{kind}: ")
