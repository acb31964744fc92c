"""Networks in the pipeline: exported training sets, training, embeddings."""

from __future__ import annotations

import json
from functools import partial, reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.inputs import bounded_batches, read_catalogue
from pipelines.job import Job, Stage
from recs.config import NETWORKS, Config, ConfigError, Sequences
from recs.lake import LakeError
from recs.ranking.embeddings import EmbeddingModel, write_embeddings
from recs.runs import Finished, Ledger
from recs.storage import join, new_folder, remove_tree
from recs.training import embed, export
from recs.training.launch import launch
from recs.training.plan import Plan
from recs.training.settings import Network, TrainingJob, check_processes

#: Tables that a network is opened from.
NETWORK_TABLES = ("item_embeddings", "user_embeddings")

_EXPORTED = "exported"  # a detail of runs: the run whose training set was trained on

#: Training sets that are kept: the newest, and one that may still be trained on.
_KEPT_SETS = 2


def run_export(job: Job) -> None:
    """Write the training set of this run: sequences, and validation events to stop by."""
    config, events = job.config, job.config.events
    job.run.require_one_generation("interactions", "sequences", "user_positives")
    num_users, num_items = job.num_users(), job.num_items()
    sequences, interactions = job.read("sequences"), job.read("interactions")
    train = sequences.where(F.col("upto") == "train")
    positives, splits = job.read("user_positives"), job.fit_splits
    liked = positives.select("user_id", F.col("train").alias("items"))
    measured = export.with_targets(train, interactions, liked)
    if config.export.hold_out:
        splits = ("train",)
    else:
        train, measured = embed.newest(sequences, splits), measured.limit(0)
        liked = positives.select("user_id", F.array_union("train", "validation").alias("items"))
    by_hash = F.xxhash64(F.lit(config.seed), "user_id")
    measured = measured.orderBy(by_hash, "user_id").limit(config.export.validation_users)
    types = job.read("event_type_ids").collect()
    positive = [name for name, kind in events.types.items() if kind.polarity == "positive"]
    folder = job.lake.location.training_set(config.mode, job.run.run_id)
    with new_folder(folder), bounded_batches(job.spark):
        export.export(
            train,
            job.persist(measured),
            liked,
            read_catalogue(job, splits),
            folder,
            tables=job.run.inputs,
            num_users=num_users,
            num_items=num_items,
            event_type_ids={row["event_type"]: row["event_type_id"] for row in types},
            positive=positive,
            length=(config.sequences or Sequences()).length,
            lanes=config.export.lanes,
            seed=config.seed,
        )
    job.note_splits(splits)
    job.run.after_commit(lambda: _remove_old_sets(job))


def _remove_old_sets(job: Job) -> None:
    for run in Ledger(job.lake).finished("export")[:-_KEPT_SETS]:
        remove_tree(job.lake.location.training_set(job.config.mode, run.run_id))


def check_networks(config: Config) -> None:
    """Refuse settings that a training process would refuse.

    Raises
    ------
    ConfigError
        If a network or its loss has no such setting, or a value cannot be, the processes cannot
        share its batches, or torch is missing.
    """
    try:
        from recs.nn.models import read_settings
        from recs.training.loop import read_loss
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"training needs {error.name}: install recs with its extra 'train'"
        ) from error
    for name in networks_of(config):
        network = config.networks[name].network
        for part, read in (("model", partial(read_settings, name)), ("loss", read_loss)):
            try:
                read(getattr(network, part))
            except ValueError as error:
                raise ConfigError(f"key 'networks.{name}.{part}': {error}") from error
        training, count = network.training, config.processes.count
        try:
            check_processes(training, count)
            plan = Plan((), config.export.lanes, training.batch_size, config.seed)
            next(plan.steps(0, 0, count), None)
        except ValueError as error:
            raise ConfigError(f"key 'networks.{name}.training': {error}") from error


def run_train(job: Job) -> None:
    """Train every network on the newest training set, one after the other.

    A run that was killed goes on from the checkpoints that it left, if it is started again with its
    run_id; once it has ended they are removed.
    """
    names = networks_of(job.config)
    exported = newest_export(job)
    rows = [_train(job, name, exported) for name in names]
    job.run.details["networks"] = json.dumps(names)
    job.run.details[_EXPORTED] = exported.run_id
    job.note_splits(job.splits_of(exported))
    job.write_rows("trainings", rows, "append")


def _train(job: Job, name: str, exported: Finished) -> dict[str, Any]:
    """Train a network and return its row of ``trainings``."""
    folder = job.lake.location.model(job.config.mode, name, job.run.run_id)
    task = training_job(job, name, exported, folder)
    done = launch(job.spark, task)
    job.run.after_commit(lambda: remove_tree(task.checkpoints))
    validation = task.network.training.validation
    return {
        "model": name,
        "path": join(task.folder, "model"),
        "training_set": task.training_set,
        "settings": task.network.model_dump_json(),
        "metric": f"{validation.metric}@{validation.k}",
        **{key: done[key] for key in ("validation", "best_epoch", "epochs", "updates", "seconds")},
    }


def newest_export(job: Job) -> Finished:
    """Return the run that made the training set: this one, or the newest.

    Raises
    ------
    LakeError
        If there is none.
    """
    exported = job.run.newest("export", job.run.run_id) or job.run.newest("export")
    if exported is None:
        raise LakeError("there is no training set: run the stage export first")
    return exported


def training_job(job: Job, name: str, exported: Finished, folder: str) -> TrainingJob:
    """Return the training of a network on an exported training set."""
    config = job.config
    return TrainingJob(
        name=name,
        training_set=job.lake.location.training_set(config.mode, exported.run_id),
        folder=folder,
        network=config.networks[name].network,
        processes=config.processes,
        seed=config.seed,
        versions={table: str(version) for table, version in exported.inputs.items()},
        exclude_seen=config.recommend.exclude_seen,
    )


def networks_of(config: Config) -> list[str]:
    """Return the networks of the configuration.

    Raises
    ------
    ConfigError
        If it names none.
    """
    names = [name for name in config.models if name in NETWORKS]
    if not names:
        raise ConfigError(f"models names no network: add one of {', '.join(NETWORKS)}")
    return names


def run_embed(job: Job) -> None:
    """Write the vectors of items and users; of known models only for users with new events."""
    names = networks_of(job.config)
    trained = _trained(job, names)
    last = job.run.newest("embed")
    job.run.details["trained"] = json.dumps(trained)
    job.note_splits(job.fit_splits)
    same = last is not None and _embedded(last) == trained
    if same and job.run.unchanged("sequences"):
        job.keep(*NETWORK_TABLES)
        return
    new = job.run.read_new("sequences") if same else None
    sequences = job.read("sequences")
    if new is not None:
        changed = new.select("user_id").distinct()
        sequences = sequences.join(changed, "user_id", "left_semi")
    histories = job.persist(embed.newest(sequences, job.fit_splits))
    users, items = [], []
    for name in names:
        folder = model_folder(job, name, trained[name])
        of_model = {"model": F.lit(name), "model_version": F.lit(trained[name])}
        users.append(embed.user_embeddings(histories, folder).withColumns(of_model))
        items.append(embed.item_embeddings(job.spark, folder).withColumns(of_model))
    made = reduce(DataFrame.unionByName, users)
    with bounded_batches(job.spark):
        if new is None:
            job.write("user_embeddings", made)
            job.write("item_embeddings", reduce(DataFrame.unionByName, items))
        else:
            job.run.replace("user_embeddings", made, gone=changed)


def _trained(job: Job, names: list[str]) -> dict[str, str]:
    """Return the run that last trained each of the networks."""
    newest = {
        name: run
        for run in job.run.finished_runs("train")
        for name in json.loads(run.details["networks"])
    }
    for name in names:
        if name not in newest:
            raise LakeError(f"{name} has not been trained: run the stage train first")
        if "validation" in job.splits_of(newest[name]) and "validation" not in job.fit_splits:
            raise LakeError(
                f"run {newest[name].run_id} has trained {name} on validation events "
                "(export.hold_out: false), which evaluate.split=validation ranks: run export and "
                "train with export.hold_out=true"
            )
    return {name: newest[name].run_id for name in names}


def _embedded(run: Finished) -> dict[str, str]:
    """Return the run that trained each network that a run of ``embed`` has embedded."""
    return dict(json.loads(run.details["trained"]))


def embedded_version(name: str, job: Job) -> str:
    """Return the run that trained a network as it is embedded.

    Raises
    ------
    LakeError
        If it is not.
    """
    run = job.run.newest("embed")
    versions = {} if run is None else _embedded(run)
    if name not in versions:
        raise LakeError(f"{name} has no vectors: run the stage embed with it among models first")
    return versions[name]


def model_folder(job: Job, name: str, trained: str) -> str:
    """Return the folder of a network as the run ``trained`` has left it."""
    return join(job.lake.location.model(job.config.mode, name, trained), "model")


def open_network(name: str, job: Job) -> EmbeddingModel:
    """Return a network as embedded: its item vectors in files.

    Raises
    ------
    LakeError
        If users' vectors are of other events than their histories, or for a backtest the network
        was trained on other interactions.
    """
    trained = embedded_version(name, job)
    job.require_fitted("embed", "user_embeddings")
    job.run.require_one_generation("interactions", "user_embeddings")
    if job.config.mode == "backtest":
        _require_trained_on_these(name, trained, job)
    items = job.read("item_embeddings").where(F.col("model") == name)
    return write_embeddings(items, join(job.work_folder, name), job.num_items(), name)


def _require_trained_on_these(name: str, trained: str, job: Job) -> None:
    """Refuse a network that was trained on other interactions than the run reads.

    Raises
    ------
    LakeError
        If it was: another part of them may have been held out.
    """
    training = job.run.newest("train", trained)
    exported = training and job.run.newest("export", training.details[_EXPORTED])
    key = job.lake.key("interactions")
    if exported is None or exported.inputs[key] != job.run.inputs[key]:
        raise LakeError(
            f"run {trained} has trained {name} on other interactions than are split now, of which "
            "another part may have been held out: run the stages export, train, embed"
        )


EXPORT = Stage(
    "export",
    "Write the files that networks are trained on.",
    reads=(
        "sequences",
        "interactions",
        "catalogue",
        "user_positives",
        "event_type_ids",
        "user_ids",
        "item_ids",
    ),
    writes=(),
    settings=(
        "mode",
        "seed",
        "events.types",
        "split.recommendable",
        "sequences",
        "export",
        "evaluate.split",
    ),
    work=run_export,
)
TRAIN = Stage(
    "train",
    "Train networks through TorchDistributor.",
    reads=(),
    writes=("trainings",),
    settings=(
        "mode",
        "seed",
        "models",
        *(f"networks.*.{part}" for part in Network.model_fields),
        "recommend.exclude_seen",
    ),
    work=run_train,
)
EMBED = Stage(
    "embed",
    "Write the vectors of users and items that networks have learned.",
    reads=("sequences",),
    writes=NETWORK_TABLES,
    settings=("mode", "models", "evaluate.split"),
    work=run_embed,
)
