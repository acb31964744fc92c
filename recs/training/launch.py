"""Start the training processes with TorchDistributor, after checking that they can start."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from pyspark.sql import SparkSession

from recs.errors import UserError
from recs.storage import filesystem, join, read_file, remove_tree, write_file
from recs.training.dataset import open_training_set
from recs.training.plan import Plan
from recs.training.settings import TrainingJob

_TAIL = 2000


class LaunchError(UserError):
    """Training that cannot start, or a process of it that failed."""


class StartError(LaunchError):
    """Processes that this machine or cluster cannot start, whatever they would train."""


class DivergedError(LaunchError):
    """Training whose loss became no finite number: its settings' fault, not the machines'."""


class OutOfMemoryError(LaunchError):
    """Training that takes more memory than its processes have."""


def launch(spark: SparkSession, job: TrainingJob) -> dict[str, Any]:
    """Train with TorchDistributor and return the metrics of the run.

    Raises
    ------
    StartError
        If the machine or the cluster cannot run the processes.
    LaunchError
        If the settings do not fit the training set, or a process fails: with what it said last.
    DivergedError
        If the loss became no finite number.
    OutOfMemoryError
        If a process told that its memory, or its GPU's, does not suffice.
    """
    from pyspark.ml.torch.distributor import TorchDistributor

    # Here alone, for pipelines without networks need no torch.
    from recs.training import worker

    check(spark, job)
    uri = join(job.folder, "job.json")
    write_file(uri, job.model_dump_json(indent=1).encode())
    for told in ("errors", "metrics.json"):  # by an earlier attempt
        remove_tree(join(job.folder, told))
    processes = job.processes
    threads = processes.threads or max(1, (os.cpu_count() or 1) // processes.count)
    if processes.local:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        TorchDistributor(
            num_processes=processes.count, local_mode=processes.local, use_gpu=processes.gpu
        ).run(worker.__file__, uri)
    except Exception as error:
        raise _failure(job, str(error)) from error
    metrics = read_file(join(job.folder, "metrics.json"))
    if metrics is None:
        raise _failure(job, "it ended without metrics")
    return dict(json.loads(metrics))


def check(spark: SparkSession, job: TrainingJob) -> None:
    """Refuse a job that cannot start, saying why.

    Raises
    ------
    StartError, LaunchError
        As :func:`launch`.
    """
    count, gpu, local = job.processes.count, job.processes.gpu, job.processes.local
    manifest = open_training_set(job.training_set).manifest
    batch_size = job.network.training.batch_size
    try:
        plan = Plan(manifest.parts["train"], manifest.lanes, batch_size, job.seed)
        next(plan.steps(0, 0, count), None)
    except ValueError as error:
        raise LaunchError(f"{job.training_set}: {error}") from error
    if gpu and local:
        import torch

        if torch.cuda.device_count() < count:
            raise StartError(
                f"{count} processes need a GPU each, this machine has {torch.cuda.device_count()}: "
                "give processes.count, processes.gpu=false, or processes.local=false"
            )
    conf = spark.sparkContext.getConf()
    if gpu and local and int(conf.get("spark.driver.resource.gpu.amount", "0")) < count:
        raise StartError(
            f"{count} processes need a GPU each, and Spark has to know them: set "
            f"spark.driver.resource.gpu.amount={count} and "
            "spark.driver.resource.gpu.discoveryScript before it starts, or run recs/training/"
            "worker.py under torchrun"
        )
    if local:
        return
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise StartError(
            "the processes of a training start together, which dynamic allocation does not allow: "
            "set spark.dynamicAllocation.enabled=false"
        )
    tls = conf.get("spark.ssl.enabled", "false") == "true"
    if tls and conf.get("pytorch.spark.distributor.ignoreSsl", "false") != "true":
        raise StartError(
            "TorchDistributor does not encrypt what the processes say to each other, but "
            "spark.ssl.enabled is set: set pytorch.spark.distributor.ignoreSsl=true to accept that"
        )
    slots = _slots(spark)
    if slots < count:
        raise StartError(
            f"{count} processes start together, the cluster has {slots} slots of "
            f"{conf.get('spark.task.cpus', '1')} cores: give fewer processes.count, or more "
            "executors"
        )
    if gpu:
        amount = conf.get("spark.task.resource.gpu.amount", "")
        if not amount or not math.isclose(float(amount), round(float(amount))):
            raise StartError(
                f"spark.task.resource.gpu.amount is {amount or 'not set'}: a training process "
                "takes whole GPUs; set it to 1"
            )


def _slots(spark: SparkSession) -> int:
    """Return the tasks that can run at once: what a barrier stage itself asks before it starts.

    The default parallelism would not tell, for a setting may name any number.
    """
    context = spark.sparkContext._jsc.sc()
    profile = context.resourceProfileManager().defaultResourceProfile()
    return int(context.maxNumConcurrentTasks(profile))


def _failure(job: TrainingJob, otherwise: str) -> LaunchError:
    """Return the error of processes that failed; ``otherwise`` is said where none told why."""
    from recs.training.loop import TrainingError
    from recs.training.worker import OUT_OF_MEMORY

    reason = _reason(job)
    kind, _, said = reason.partition("\n")[0].partition(": ")
    if kind == TrainingError.__name__:
        return DivergedError(f"training of {job.name} failed: {kind}: {said}")
    if kind == OUT_OF_MEMORY:
        return OutOfMemoryError(
            f"training of {job.name} ran out of memory: {said.rstrip('.')}: raise "
            "training.accumulate, lower training.batch_size, or shard tables with training.sharded"
        )
    return LaunchError(f"training of {job.name} failed: {_tail(reason) or otherwise}")


def _reason(job: TrainingJob) -> str:
    """Return what the first failed process said."""
    fs, path = filesystem(join(job.folder, "errors"))
    if not fs.exists(path):
        return ""
    texts = [fs.cat_file(name).decode() for name in sorted(fs.ls(path, detail=False))]
    # A process that waits for a failed one fails too, with a message of the connection.
    told = [text for text in texts if "DistBackendError" not in text and "gloo" not in text]
    return (told or texts or [""])[0]


def _tail(text: str) -> str:
    return text[-_TAIL:].strip()
