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


class DivergedError(LaunchError):
    """Training whose loss became no finite number: its settings' fault, not the machines'."""


def launch(spark: SparkSession, job: TrainingJob) -> dict[str, Any]:
    """Train with TorchDistributor and return the metrics of the run.

    Raises
    ------
    LaunchError
        If the settings do not fit the training set, the cluster cannot run the processes, or one of
        them fails: with what it said last.
    DivergedError
        If the loss became no finite number.
    """
    from pyspark.ml.torch.distributor import TorchDistributor

    # Here alone, for pipelines without networks need no torch.
    from recs.training import worker
    from recs.training.loop import TrainingError

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
        reason = _reason(job)
        kind = DivergedError if reason.startswith(f"{TrainingError.__name__}:") else LaunchError
        raise kind(f"training of {job.name} failed: {_tail(reason) or error}") from error
    metrics = read_file(join(job.folder, "metrics.json"))
    if metrics is None:
        raise LaunchError(f"training of {job.name} ended without metrics: {_tail(_reason(job))}")
    return dict(json.loads(metrics))


def check(spark: SparkSession, job: TrainingJob) -> None:
    """Refuse a job that cannot start, saying why.

    Raises
    ------
    LaunchError
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
            raise LaunchError(
                f"{count} processes need a GPU each, this machine has {torch.cuda.device_count()}: "
                "give processes.count, processes.gpu=false, or processes.local=false"
            )
    conf = spark.sparkContext.getConf()
    if gpu and local and int(conf.get("spark.driver.resource.gpu.amount", "0")) < count:
        raise LaunchError(
            f"{count} processes need a GPU each, and Spark has to know them: set "
            f"spark.driver.resource.gpu.amount={count} and "
            "spark.driver.resource.gpu.discoveryScript before it starts, or run recs/training/"
            "worker.py under torchrun"
        )
    if local:
        return
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise LaunchError(
            "the processes of a training start together, which dynamic allocation does not allow: "
            "set spark.dynamicAllocation.enabled=false"
        )
    tls = conf.get("spark.ssl.enabled", "false") == "true"
    if tls and conf.get("pytorch.spark.distributor.ignoreSsl", "false") != "true":
        raise LaunchError(
            "TorchDistributor does not encrypt what the processes say to each other, but "
            "spark.ssl.enabled is set: set pytorch.spark.distributor.ignoreSsl=true to accept that"
        )
    slots = _slots(spark)
    if slots < count:
        raise LaunchError(
            f"{count} processes start together, the cluster has {slots} slots of "
            f"{conf.get('spark.task.cpus', '1')} cores: give fewer processes.count, or more "
            "executors"
        )
    if gpu:
        amount = conf.get("spark.task.resource.gpu.amount", "")
        if not amount or not math.isclose(float(amount), round(float(amount))):
            raise LaunchError(
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
