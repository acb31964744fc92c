"""What rank 0 tells of training: to people, to TensorBoard and to MLflow."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from fsspec.implementations.local import LocalFileSystem

from recs.storage import filesystem, join, redact_text
from recs.training.settings import TrainingJob

_SECONDS_BETWEEN_LINES = 5.0


class Reporter(Protocol):
    """Is told of progress, on rank 0; epochs count from 0, steps from 1."""

    def step(self, epoch: int, step: int, steps: int, loss: float, examples_per_s: float) -> None:
        """A step of ``steps`` in the epoch is done."""

    def measured(self, epoch: int, metric: str, value: float) -> None:
        """The validation metric was measured."""


class Lines:
    """A line every few seconds, and one a measurement."""

    def __init__(self, job: TrainingJob) -> None:
        self._name, self._told = job.name, 0.0

    def step(self, epoch: int, step: int, steps: int, loss: float, examples_per_s: float) -> None:
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_LINES and step < steps:
            return
        self._told = now
        print(
            f"{self._name}: epoch {epoch + 1}, step {step}/{steps}, loss {loss:.4f}, "
            f"{examples_per_s:,.0f} examples/s",
            flush=True,
        )

    def measured(self, epoch: int, metric: str, value: float) -> None:
        print(f"{self._name}: epoch {epoch + 1}, validation {metric} {value:.4f}", flush=True)


class Bar:
    """A progress bar over all epochs, for a terminal."""

    def __init__(self, job: TrainingJob) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._epochs, self._metric = job.network.training.epochs, ""
        told = TextColumn("{task.description}")
        self._bar = Progress(TextColumn(job.name), BarColumn(), told, TimeRemainingColumn())
        self._task = self._bar.add_task("starting", total=None)
        self._bar.start()

    def step(self, epoch: int, step: int, steps: int, loss: float, examples_per_s: float) -> None:
        shown = f"epoch {epoch + 1}/{self._epochs}  loss {loss:.4f}  {examples_per_s:,.0f}/s"
        self._bar.update(
            self._task,
            total=self._epochs * steps,
            completed=epoch * steps + step,
            description=shown + self._metric,
        )

    def measured(self, epoch: int, metric: str, value: float) -> None:
        self._metric = f"  {metric} {value:.4f}"

    def close(self) -> None:
        self._bar.stop()


class TensorBoard:
    """Scalars under ``tensorboard`` in the model's folder, which is local or mounted."""

    def __init__(self, job: TrainingJob) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _, path = filesystem(join(job.folder, "tensorboard"))
        self._writer = SummaryWriter(path)

    def step(self, epoch: int, step: int, steps: int, loss: float, examples_per_s: float) -> None:
        at = epoch * steps + step
        self._writer.add_scalar("loss", loss, at)
        self._writer.add_scalar("examples_per_s", examples_per_s, at)

    def measured(self, epoch: int, metric: str, value: float) -> None:
        self._writer.add_scalar(metric, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run of MLflow's tracking server, with the job's settings as parameters."""

    def __init__(self, job: TrainingJob) -> None:
        import mlflow

        self._mlflow, self._told, self._at, self._lost = mlflow, 0.0, 0, False
        self._tell(partial(mlflow.start_run, run_name=job.name))
        told = {"model": job.name, "seed": job.seed, "folder": redact_text(job.folder)}
        told |= _flat(job.network.model_dump(mode="json")) | job.versions
        self._tell(mlflow.log_params, told)

    def step(self, epoch: int, step: int, steps: int, loss: float, examples_per_s: float) -> None:
        now, self._at = time.monotonic(), epoch * steps + step
        if now - self._told > _SECONDS_BETWEEN_LINES:  # each is a request
            self._told = now
            told = {"loss": loss, "examples_per_s": examples_per_s}
            self._tell(self._mlflow.log_metrics, told, self._at)

    def measured(self, epoch: int, metric: str, value: float) -> None:
        # "@" may not be in a name there.
        self._tell(self._mlflow.log_metric, metric.replace("@", "_at_"), value, self._at)

    def close(self) -> None:
        failed = sys.exc_info()[0] is not None
        self._tell(self._mlflow.end_run, "FAILED" if failed else "FINISHED")

    def _tell(self, tell: Callable[..., Any], *values: Any) -> None:
        """Tell the server; hours of training do not end with it, nor wait for it again."""
        if self._lost:
            return
        try:
            tell(*values)
        except Exception as error:
            self._lost = True
            print(f"MLflow is told no more: {redact_text(str(error))}", flush=True)


class _All:
    """Tells several reporters."""

    def __init__(self, reporters: list[Any]) -> None:
        self.reporters = reporters

    def step(self, epoch: int, step: int, steps: int, loss: float, examples_per_s: float) -> None:
        for reporter in self.reporters:
            reporter.step(epoch, step, steps, loss, examples_per_s)

    def measured(self, epoch: int, metric: str, value: float) -> None:
        for reporter in self.reporters:
            reporter.measured(epoch, metric, value)


@contextmanager
def reporter_of(job: TrainingJob) -> Iterator[Reporter]:
    """Return what reports of a job while the block runs.

    A bar on a terminal, else lines; TensorBoard's scalars where that is installed and the folder is
    local; MLflow where that is installed and ``MLFLOW_TRACKING_URI`` is set.
    """
    kinds: list[Any] = [Bar if sys.stdout.isatty() else Lines]
    fs, _ = filesystem(job.folder)
    if importlib.util.find_spec("tensorboard") and isinstance(fs, LocalFileSystem):
        kinds.append(TensorBoard)
    if importlib.util.find_spec("mlflow") and os.environ.get("MLFLOW_TRACKING_URI"):
        kinds.append(MLflow)
    reporters = [kind(job) for kind in kinds]
    try:
        yield _All(reporters)
    finally:
        for reporter in reporters:
            if hasattr(reporter, "close"):
                reporter.close()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
