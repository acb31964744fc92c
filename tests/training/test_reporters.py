"""What training tells, and to whom."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from recs.storage import SCHEMES
from recs.training.reporters import Bar, reporter_of
from recs.training.settings import Network, Processes, TrainingJob


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    return TrainingJob(
        name="sasrec",
        training_set=str(tmp_path / "set"),
        folder=str(tmp_path / "model"),
        network=Network(model={"dim": 16}),
        processes=Processes(),
        seed=1,
    )


def test_lines_without_a_terminal(job: TrainingJob, capsys: pytest.CaptureFixture[str]) -> None:
    with reporter_of(job) as reporter:
        reporter.step(0, 1, 3, 2.5, 1234.0)
        reporter.step(0, 2, 3, 2.4, 1234.0)  # too soon after the first
        reporter.step(0, 3, 3, 2.3, 1234.0)
        reporter.measured(0, "ndcg@10", 0.25)
    assert capsys.readouterr().out.splitlines() == [
        "sasrec: epoch 1, step 1/3, loss 2.5000, 1,234 examples/s",
        "sasrec: epoch 1, step 3/3, loss 2.3000, 1,234 examples/s",
        "sasrec: epoch 1, validation ndcg@10 0.2500",
    ]


def test_a_bar_tells_loss_rate_and_metric(
    job: TrainingJob, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar(job)
    bar.measured(0, "ndcg@10", 0.25)
    bar.step(1, 3, 3, 2.3, 1234.0)
    bar.close()
    shown = " ".join(capsys.readouterr().out.split())
    assert "sasrec" in shown and "epoch 2/20" in shown
    assert "loss 2.3000" in shown and "1,234/s" in shown and "ndcg@10 0.2500" in shown


@pytest.mark.parametrize(
    "folder, written",
    [
        ("/lake/model", "/lake/model/tensorboard"),
        ("file:/lake/model", "/lake/model/tensorboard"),
        ("file:///lake/model", "/lake/model/tensorboard"),
        ("dbfs:/mnt/lake/model", "/dbfs/mnt/lake/model/tensorboard"),
        ("memory://lake/model", None),
    ],
)
def test_tensorboard_writes_where_the_model_is(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch, folder: str, written: str | None
) -> None:
    monkeypatch.setitem(SCHEMES, "memory", "memory")
    board = ModuleType("tensorboard")
    board.__spec__ = ModuleSpec("tensorboard", None)
    writers: Any = ModuleType("torch.utils.tensorboard")
    writers.SummaryWriter = MagicMock()
    monkeypatch.setitem(sys.modules, "tensorboard", board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writers)
    with reporter_of(job.model_copy(update={"folder": folder})) as reporter:
        reporter.step(0, 1, 3, 2.5, 1234.0)
    assert [call.args for call in writers.SummaryWriter.call_args_list] == (
        [(written,)] if written else []
    )


class Tracking(ModuleType):
    """Stands for mlflow."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = ModuleSpec("mlflow", None)
        self.told: list[Any] = []

    def start_run(self, run_name: str) -> None:
        self.told.append(run_name)

    def log_params(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.told.append((metrics, step))

    def log_metric(self, name: str, value: float, step: int) -> None:
        self.told.append((name, value, step))

    def end_run(self, status: str) -> None:
        self.told.append(status)


def test_mlflow_is_told_where_it_is_configured(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking()
    monkeypatch.setitem(sys.modules, "mlflow", tracking)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with reporter_of(job) as reporter:
        reporter.step(0, 1, 3, 2.5, 1234.0)
    assert tracking.told == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    with reporter_of(job) as reporter:
        reporter.step(0, 1, 3, 2.5, 1234.0)
        reporter.measured(0, "ndcg@10", 0.25)
    with pytest.raises(ZeroDivisionError), reporter_of(job):
        raise ZeroDivisionError
    assert tracking.told == [
        "sasrec",
        ({"loss": 2.5, "examples_per_s": 1234.0}, 1),
        ("ndcg_at_10", 0.25, 1),
        "FINISHED",
        "sasrec",
        "FAILED",
    ]
    assert tracking.parameters["model.dim"] == 16
    assert tracking.parameters["training.optimizer.name"] == "adamw"


def test_a_training_goes_on_without_a_tracking_server_that_is_lost(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = Tracking()
    monkeypatch.setitem(sys.modules, "mlflow", tracking)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    with reporter_of(job) as reporter:
        monkeypatch.setattr(tracking, "log_metrics", MagicMock(side_effect=OSError("no route")))
        for step in (1, 2, 3):
            reporter.step(0, step, 3, 2.5, 1234.0)
        reporter.measured(0, "ndcg@10", 0.25)
    assert tracking.told == ["sasrec"]
    assert capsys.readouterr().out.count("MLflow is told no more: no route") == 1
