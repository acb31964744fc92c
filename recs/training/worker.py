"""What every training process runs: ``torchrun recs/training/worker.py JOB``.

TorchDistributor starts it on a Spark cluster or the driver's machine, torchrun on hosts without
Spark; both tell a process its rank by the environment. JOB is the URI of a
:class:`~recs.training.settings.TrainingJob` as JSON.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

from recs.storage import filesystem, join, redact_text, write_file
from recs.training.loop import Ranks, train
from recs.training.settings import TrainingJob

_SECONDS_BETWEEN_LINES = 5.0


class _Lines:
    """Progress as a line every few seconds, and as TensorBoard scalars where that is installed."""

    def __init__(self, name: str, folder: str) -> None:
        self._name, self._told = name, 0.0
        self._scalars = _scalars(folder)

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
        if self._scalars:
            self._scalars.add_scalar("loss", loss, epoch * steps + step)
            self._scalars.add_scalar("examples_per_s", examples_per_s, epoch * steps + step)

    def measured(self, epoch: int, metric: str, value: float) -> None:
        print(f"{self._name}: epoch {epoch + 1}, validation {metric} {value:.4f}", flush=True)
        if self._scalars:
            self._scalars.add_scalar(metric, value, epoch)
            self._scalars.flush()


def _scalars(folder: str):  # type: ignore[no-untyped-def]
    if "://" in folder:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(join(folder, "tensorboard"))


def main(arguments: list[str]) -> None:
    """Train as one of the processes that the environment names."""
    (uri,) = arguments
    fs, path = filesystem(uri)
    job = TrainingJob.model_validate_json(fs.cat_file(path))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        device = torch.device("cpu")
        if job.processes.gpu:
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        if job.processes.threads:
            torch.set_num_threads(job.processes.threads)
        if count > 1:
            timeout = timedelta(minutes=job.network.training.timeout_minutes)
            dist.init_process_group("nccl" if job.processes.gpu else "gloo", timeout=timeout)
        reporter = _Lines(job.name, job.folder) if rank == 0 else None
        train(job, Ranks(rank, count, device), reporter)
        if count > 1:
            dist.destroy_process_group()
    except BaseException as error:
        # The launcher reads this: what torchrun prints of a failure does not say why.
        text = redact_text(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        write_file(join(job.folder, "errors", f"rank-{rank}.txt"), text.encode())
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
