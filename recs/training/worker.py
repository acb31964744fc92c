"""What every training process runs: ``torchrun recs/training/worker.py JOB``.

TorchDistributor starts it on a Spark cluster or the driver's machine, torchrun on hosts without
Spark; both tell a process its rank by the environment. JOB is the URI of a
:class:`~recs.training.settings.TrainingJob` as JSON.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import traceback
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist

from recs.storage import filesystem, join, redact_text, write_file
from recs.training.loop import Ranks, train
from recs.training.reporters import reporter_of
from recs.training.settings import TrainingJob

#: The kind that a process tells of any error which says that memory is lacking.
OUT_OF_MEMORY = "OutOfMemoryError"

#: What CUDA, its libraries, torch's allocator for CPUs and the kernel say.
_LACKING = (
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "Cannot allocate memory",
)


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
        else:
            _keep_freed_memory()
        if job.processes.threads:
            torch.set_num_threads(job.processes.threads)
        if count > 1:
            timeout = timedelta(minutes=job.network.training.timeout_minutes)
            dist.init_process_group("nccl" if job.processes.gpu else "gloo", timeout=timeout)
        with reporter_of(job) if rank == 0 else nullcontext() as reporter:
            train(job, Ranks(rank, count, device), reporter)
        if count > 1:
            dist.destroy_process_group()
    except BaseException as error:
        # The launcher reads this: what torchrun prints of a failure does not say why.
        text = redact_text(f"{_kind(error)}: {error}\n{traceback.format_exc()}")
        write_file(join(job.folder, "errors", f"rank-{rank}.txt"), text.encode())
        raise


def _kind(error: BaseException) -> str:
    """Return the name of an error's class, or :data:`OUT_OF_MEMORY`.

    Torch has a class for that on GPUs alone, and there not from every library.
    """
    lacking = isinstance(error, MemoryError) or any(told in str(error) for told in _LACKING)
    return OUT_OF_MEMORY if lacking else type(error).__name__


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, where there is glibc.

    It would give large tensors back to the system, and each step would take their pages anew, which
    costs a CPU a fifth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
    # DistributedDataParallel keeps its group, and with it Gloo's threads, beyond the group's end. A
    # thread that drops its last tensor when the interpreter is gone aborts a process that is done.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
