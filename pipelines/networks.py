"""Networks in the pipeline: exported training sets, training, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pyspark.sql import functions as F

from pipelines.inputs import bounded_batches, read_catalogue
from pipelines.job import Job, Stage
from recs.config import NETWORKS, Config, ConfigError, Sequences
from recs.lake import LakeError
from recs.ledger import Finished
from recs.ranking.embeddings import EmbeddingModel, write_embeddings
from recs.schema import part
from recs.storage import join, new_folder, remove_tree
from recs.training import embed, export
from recs.training.launch import launch
from recs.training.plan import Plan
from recs.training.settings import Network, TrainingJob, check_processes

# Details of runs: the run whose training set was trained on, and the one whose network is embedded.
_EXPORTED = "exported"
TRAINED = "trained"


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


def networks_of(models: Sequence[str]) -> list[str]:
    """Return the networks among models."""
    return [name for name in models if name in NETWORKS]


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
    for name in networks_of(config.models):
        network = config.networks[name].network
        for section, read in (("model", partial(read_settings, name)), ("loss", read_loss)):
            try:
                read(getattr(network, section))
            except ValueError as error:
                raise ConfigError(f"key 'networks.{name}.{section}': {error}") from error
        training, count = network.training, config.processes.count
        try:
            check_processes(training, count)
            plan = Plan((), config.export.lanes, training.batch_size, config.seed)
            next(plan.steps(0, 0, count), None)
        except ValueError as error:
            raise ConfigError(f"key 'networks.{name}.training': {error}") from error


def run_train(job: Job) -> None:
    """Train the stage's network on the newest training set.

    A run that was killed goes on from the checkpoints that it left, if it is started again with its
    run_id; once it has ended they are removed.
    """
    assert job.model is not None
    exported = newest_export(job)
    folder = job.lake.location.model(job.config.mode, job.model, job.run.run_id)
    task = training_job(job, job.model, exported, folder)
    done = launch(job.spark, task)
    job.run.after_commit(lambda: remove_tree(task.checkpoints))
    job.run.details[_EXPORTED] = exported.run_id
    job.note_splits(job.splits_of(exported))
    training = task.network.training
    read_by = training.model_copy(update={"feed": done["feed"]})
    settings = task.network.model_copy(update={"training": read_by})
    trained = {
        "model": job.model,
        "path": join(task.folder, "model"),
        "training_set": task.training_set,
        "settings": settings.model_dump_json(),
        "metric": f"{training.validation.metric}@{training.validation.k}",
        **{key: done[key] for key in ("validation", "best_epoch", "epochs", "updates", "seconds")},
    }
    job.write_rows("trainings", [trained], "append")


def newest_export(job: Job) -> Finished:
    """Return the run that made the training set: this one, or the newest.

    Raises
    ------
    LakeError
        If there is none.
    """
    exported = job.run.newest("export", run_id=job.run.run_id) or job.run.newest("export")
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


def run_embed(job: Job) -> None:
    """Write the network's vectors of items and users; of a known one of users with new events."""
    name = job.model
    assert name is not None
    trained = _trained(job, name)
    last = job.run.newest("embed", name)
    job.run.details[TRAINED] = trained
    job.note_splits(job.fit_splits)
    same = last is not None and last.details[TRAINED] == trained
    if same and job.run.unchanged("sequences"):
        job.keep("item_embeddings", "user_embeddings")
        return
    new = job.run.read_new("sequences") if same else None
    sequences = job.read("sequences")
    if new is not None:
        changed = new.select("user_id").distinct()
        sequences = sequences.join(changed, "user_id", "left_semi")
    folder = model_folder(job, name, trained)
    of_model = {"model": F.lit(name), "model_version": F.lit(trained)}
    newest = embed.newest(sequences, job.fit_splits)
    users = embed.user_embeddings(newest, folder).withColumns(of_model)
    with bounded_batches(job.spark):
        if new is None:
            items = embed.item_embeddings(job.spark, folder).withColumns(of_model)
            job.write("user_embeddings", users)
            job.write("item_embeddings", items)
        else:
            job.run.replace(job.name("user_embeddings"), users, gone=changed)


def _trained(job: Job, name: str) -> str:
    """Return the run that last trained a network.

    Raises
    ------
    LakeError
        If there is none, or it has seen what is to be ranked.
    """
    trained = job.run.newest("train", name)
    if trained is None:
        raise LakeError(f"{name} has not been trained: run the stage train/{name} first")
    if "validation" in job.splits_of(trained) and "validation" not in job.fit_splits:
        raise LakeError(
            f"run {trained.run_id} has trained {name} on validation events "
            "(export.hold_out: false), which evaluate.split=validation ranks: run export and "
            "train with export.hold_out=true"
        )
    return trained.run_id


def embedded_version(name: str, job: Job) -> str:
    """Return the run that trained a network as it is embedded.

    Raises
    ------
    LakeError
        If it is not.
    """
    embedded = job.run.newest("embed", name)
    if embedded is None:
        raise LakeError(f"{name} has no vectors: run the stage embed/{name} first")
    return embedded.details[TRAINED]


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
    job.require_fitted("embed", name, "user_embeddings")
    job.run.require_one_generation("interactions", part("user_embeddings", name))
    if job.config.mode == "backtest":
        _require_trained_on_these(name, trained, job)
    items = job.read(part("item_embeddings", name))
    return write_embeddings(items, join(job.work_folder, name), job.num_items(), name)


def _require_trained_on_these(name: str, trained: str, job: Job) -> None:
    """Refuse a network that was trained on other interactions than the run reads.

    Raises
    ------
    LakeError
        If it was: another part of them may have been held out.
    """
    training = job.run.newest("train", name, run_id=trained)
    exported = training and job.run.newest("export", run_id=training.details[_EXPORTED])
    key = job.lake.key("interactions")
    if exported is None or exported.inputs[key] != job.run.inputs[key]:
        raise LakeError(
            f"run {trained} has trained {name} on other interactions than are split now, of which "
            f"another part may have been held out: run export, train/{name}, embed/{name}"
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
    writes=("training_set",),
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


def embeddings(name: str) -> tuple[str, str]:
    """Return the tables that a network is opened from."""
    return part("item_embeddings", name), part("user_embeddings", name)


def train_stage(name: str) -> Stage:
    """Return the stage that trains a network."""
    return Stage(
        "train",
        "Train a network through TorchDistributor.",
        reads=("training_set",),
        writes=(part("trainings", name),),
        settings=(
            "mode",
            "seed",
            *(f"networks.{name}.{section}" for section in Network.model_fields),
            "recommend.exclude_seen",
        ),
        work=run_train,
        model=name,
    )


def embed_stage(name: str) -> Stage:
    """Return the stage that embeds items and users by a network."""
    return Stage(
        "embed",
        "Write the vectors of users and items that a network has learned.",
        reads=(part("trainings", name), "sequences"),
        writes=embeddings(name),
        settings=("mode", "evaluate.split"),
        work=run_embed,
        model=name,
    )
