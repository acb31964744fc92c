"""The training loop: the same updates for any number of processes, resumed at any step.

A batch is the rows of all ranks together. Each rank computes the summed loss of its own, and the
gradient is divided by what the whole batch asks for, so that ranks change nothing but the order of
additions. Tables of items and users may be sharded over them (:mod:`recs.nn.tables`). What is
random (dropout, negatives, masks) is drawn anew from (seed, step), so that a resumed run goes on as
if it had never stopped; dropout alone differs with the ranks.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import math
import time
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recs.errors import UserError
from recs.nn.losses import Loss, LossSettings
from recs.nn.models import build
from recs.nn.network import Chances, Examples, Histories, SequenceNetwork, Sizes
from recs.nn.samplers import Places, Previous, UserPositives
from recs.nn.tables import WHOLE, ShardedTables, Tables, sharded
from recs.schema import PADDING, SEQUENCE_ARRAYS
from recs.storage import join, write_file
from recs.training.checkpoint import Checkpoint, Shard, load_checkpoint, save_checkpoint
from recs.training.dataset import TrainingSet, open_training_set
from recs.training.feeds import Batch, Feed, FeedName, columns_of, petastorm_reads
from recs.training.model_folder import save_model
from recs.training.optimizer import (
    clip_gradients,
    load_state,
    make_optimizer,
    rate_factor,
    state_tensors,
)
from recs.training.plan import Plan
from recs.training.reporters import Reporter
from recs.training.settings import Training, TrainingJob
from recs.training.validation import RANKED_A_LANE, HeldOut, metric, rank_counts

log = logging.getLogger("recs")


class TrainingError(UserError):
    """Training that cannot go on, such as one whose loss is no number."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Return what each rank gives; anything that can be pickled."""
        gathered: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(gathered, value)
        return gathered


class _Objective(nn.Module):
    """Network and loss in one module, so that gradients of both meet in one backward pass."""

    def __init__(self, network: SequenceNetwork, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, inputs: Histories, asked: Tensor, places: Places) -> Tensor:
        """Return the summed loss of the asked places; ``asked`` bool[B, L] says where they are."""
        queries = self.network.states(inputs)[asked]
        weights = torch.ones(len(queries), device=queries.device)
        vectors, biases = self.network.item_vectors(), self.network.item_biases()
        return self.loss(queries, vectors, biases, weights, places)


@dataclass
class _Progress:
    """Where training is, and the best that it has seen; ``loss`` is the sum of the epoch's."""

    epoch: int = 0
    step: int = 0
    updates: int = 0
    best: float = -1.0
    best_epoch: int = -1
    misses: int = 0
    loss: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def train(job: TrainingJob, ranks: Ranks, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train a network, write its folder, and return its metrics.

    Every rank calls this with the same job. A run that was stopped goes on from its newest whole
    checkpoint.

    Returns
    -------
    dict
        ``validation`` (the best value, None where there are no validation events), ``best_epoch``,
        ``epochs``, ``updates``, ``seconds``, ``feed`` (what read the training set) and
        ``history``, a row an epoch.

    Raises
    ------
    TrainingError
        If the loss is no finite number.
    ValueError
        If settings are unknown or do not go together, the batch size, lanes and ranks do not fit,
        or the training set asks for nothing.
    """
    return _Trainer(job, ranks, reporter).run()


class _Trainer:
    def __init__(self, job: TrainingJob, ranks: Ranks, reporter: Reporter | None) -> None:
        self.job, self.ranks, self.reporter = job, ranks, reporter
        self.settings = job.network.training
        self.data = open_training_set(job.training_set)
        manifest = self.data.manifest
        # A place asks for the item after it, so that L places take L + 1 events.
        longest = manifest.length - 1
        self.length = min(self.settings.length or longest, longest)
        if self.length < 1:
            raise ValueError("sequences of one event ask for nothing: give sequences.length > 1")
        torch.manual_seed(job.seed)
        self.tables = make_tables(self.settings, ranks)
        counts = manifest.num_users, manifest.num_items, manifest.num_event_types
        sizes = Sizes(*counts, self.length, self.tables)
        self.network = build(job.name, sizes, job.network.model).to(ranks.device)
        self.loss = make_loss(job.network.loss, self.data, job.seed, self.tables)
        self.loss = self.loss.to(ranks.device)
        self.shards = sharded(self.network)
        _check_tables(job, self.network, self.loss)
        objective: nn.Module = _Objective(self.network, self.loss)
        if self.settings.compile:
            objective = torch.compile(objective, dynamic=True)  # type: ignore[assignment]
        self.objective = objective
        if ranks.count > 1 and len(self.shards) < len(list(self.network.parameters())):
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                objective, [f"network.{name}" for name in self.shards]
            )
            self.objective = DistributedDataParallel(objective, broadcast_buffers=False)
        # Types are read too where some events are not wanted.
        unwanted = len(manifest.positive_event_types) < manifest.num_event_types
        self.arrays = {*self.network.arrays, *(["event_types"] if unwanted else [])}
        self.reader = self._reader()
        self.plan = self._plan("train", self.settings.batch_size, shuffle=True)
        self.feed = self._feed("train", self.plan, self.length + 1)
        lanes = manifest.lanes
        self.measured = self._feed(
            "validation",
            self._plan("validation", lanes * RANKED_A_LANE, shuffle=False),
            self.length,
        )
        self.recommendable = torch.from_numpy(np.array(self.data.recommendable())).to(ranks.device)
        self.wanted = torch.zeros(manifest.num_event_types + 1, dtype=torch.bool)
        self.wanted[manifest.positive_event_types] = True
        self.wanted = self.wanted.to(ranks.device)  # padding (-1) reads the last: not wanted
        self.optimizer = make_optimizer(self.settings.optimizer, self.network)
        self.updates_an_epoch = max(1, self.plan.num_steps(0))
        self.progress = _Progress()
        self.best_weights: dict[str, Tensor] = {}
        #: The network as the epoch before left it, where hard negatives are drawn by it.
        self.previous: SequenceNetwork | None = None

    # -- data -----------------------------------------------------------------------------------

    def _plan(self, part: str, batch_size: int, *, shuffle: bool) -> Plan:
        manifest = self.data.manifest
        return Plan(manifest.parts[part], manifest.lanes, batch_size, self.job.seed, shuffle)

    def _reader(self) -> FeedName:
        """Return what all ranks read by: their hosts may have other packages than the driver."""
        feed = self.settings.feed
        if feed == "auto":
            feed = "petastorm" if all(self.ranks.gather(petastorm_reads())) else "arrow"
        elif feed == "petastorm" and importlib.util.find_spec("petastorm") is None:
            raise ValueError(
                "training.feed is petastorm, which is not installed: give auto or arrow, or "
                "install recs with its extra 'petastorm'"
            )
        if self.ranks.rank == 0:
            log.info(f"the training set is read by {feed}", extra={"feed": feed})
        return feed

    def _feed(self, part: str, plan: Plan, window: int) -> Feed:
        return Feed(
            self.data,
            part,
            plan,
            self.reader,
            columns_of(self.data, part, self.arrays),
            window,
            self.ranks.rank,
            self.ranks.count,
            self.data.positives(),
        )

    def _histories(self, batch: Batch) -> Histories:
        def column(name: str) -> Tensor:
            return torch.from_numpy(batch.columns[name]).to(self.ranks.device).long()

        items = column("items")
        # Arrays that nobody reads: of one type, and no time between events.
        unread = torch.zeros((), dtype=torch.int64, device=items.device).expand_as(items)
        others = (column(name) if name in self.arrays else unread for name in SEQUENCE_ARRAYS[1:])
        return Histories(column("user_id"), items, *others)

    def _positives(self, batch: Batch) -> UserPositives:
        assert batch.positives is not None
        device = self.ranks.device
        offsets = torch.from_numpy(batch.positives.offsets).to(device)
        return UserPositives(offsets, torch.from_numpy(batch.positives.items).to(device))

    # -- training -------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        self._resume()
        progress = self.progress
        started = time.monotonic() - progress.seconds
        while progress.epoch < self.settings.epochs and not self._has_ended():
            self._epoch(started)
            progress.epoch, progress.step = progress.epoch + 1, 0
            ended = progress.epoch == self.settings.epochs
            if ended or progress.epoch % self.settings.validation.every == 0:
                self._validate()
            progress.seconds = time.monotonic() - started
            self._save()
        return self._finish()

    def _has_ended(self) -> bool:
        patience = self.settings.validation.patience
        return patience is not None and self.progress.misses >= patience

    def _epoch(self, started: float) -> None:
        progress, rank_zero = self.progress, self.ranks.rank == 0
        steps = self.plan.num_steps(progress.epoch)
        if self.loss.reads_previous and progress.step == 0 and progress.epoch > 0:
            self.previous = copy.deepcopy(self.network).eval()
        self.network.train()
        if progress.step == 0:
            progress.loss = 0.0
        whole = progress.step == 0
        examples, asked, since = 0, 0, time.monotonic()
        for batch in self.feed.batches(progress.epoch, progress.step):
            loss, rows, places = self._step(batch)
            progress.loss += loss
            examples += rows
            asked += places
            progress.step += 1
            progress.updates += 1
            if rank_zero and self.reporter:
                rate = examples / (time.monotonic() - since)
                self.reporter.step(progress.epoch, progress.step, steps, loss, rate)
            if progress.step < steps and progress.updates % self.settings.checkpoint_steps == 0:
                progress.seconds = time.monotonic() - started
                self._save()
        if whole and not asked:
            raise ValueError(
                f"{self.job.training_set} asks for nothing: in no history does an event of a "
                "positive type come after another; give longer histories, or other events.types"
            )
        progress.history.append(
            {
                "epoch": progress.epoch,
                "loss": progress.loss / max(1, progress.step),
                "examples_per_s": examples / (time.monotonic() - since),
            }
        )

    def _step(self, batch: Batch) -> tuple[float, int, int]:
        """Make one update; return the whole batch's mean loss, histories, and places asked for."""
        progress, ranks = self.progress, self.ranks
        # All that is random at this step comes from here, whatever came before it.
        torch.manual_seed(_mixed(self.job.seed, progress.updates, ranks.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(progress.updates)
        histories = self._histories(batch)
        liked = histories.present
        if "event_types" in self.arrays:
            liked = liked & self.wanted[histories.event_types]
        wanted = histories.present if self.loss.reads_liked else liked
        at = torch.from_numpy(batch.places).to(ranks.device)
        chances = Chances.of(self.job.seed, progress.updates, at, wanted.shape[1])
        examples = self.network.examples(histories, wanted, chances)
        asked = examples.asked != PADDING
        places = self._places(batch, at, examples, asked, histories.items, liked)
        num_asked = ranks.sum(asked.sum().float())
        total = torch.zeros((), device=ranks.device)
        parts = self.settings.accumulate
        cuts = np.linspace(0, len(batch.places), parts + 1).astype(int).tolist()
        for number, (first, last) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            inputs = Histories(*(part[first:last] for part in examples.inputs))
            with self._synced(number == parts - 1), self._cast():
                loss = self.objective(inputs, asked[first:last], _part(places, first, last))
            # DDP divides by the ranks, and sharded tables do; this takes it back, and divides by
            # what was asked.
            (loss * (ranks.count / num_asked.clamp(min=1))).backward()
            total += loss.detach()
        if self.settings.optimizer.clip is not None:
            clip_gradients(self.network, self.shards, self.tables, self.settings.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        rows = (histories.users >= 0).sum().to(total.dtype)
        total, rows = ranks.sum(torch.stack([total, rows]))
        mean = float(total / num_asked.clamp(min=1))
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss is {mean} at epoch {progress.epoch}, step {progress.step}: lower "
                "optimizer.rate, or train with precision fp32"
            )
        return mean, int(rows), int(num_asked)

    def _places(
        self,
        batch: Batch,
        at: Tensor,
        examples: Examples,
        asked: Tensor,
        items: Tensor,
        liked: Tensor,
    ) -> Places:
        """Return what is asked in this rank's rows, where ``asked`` bool[B, L] says.

        ``at`` int64[B] are the rows' places in the batch of all ranks.
        """
        rows, columns = torch.nonzero(asked, as_tuple=True)
        width = asked.shape[1]
        # A place is numbered from the newest event, which trimmed padding does not move.
        numbers = at[rows] * (self.length + 1) + width - 1 - columns
        targets = examples.take(items)[asked]
        previous = None
        if self.previous is not None:
            with torch.no_grad():
                queries = self.previous.states(examples.inputs)[asked]
                vectors, biases = self.previous.item_vectors(), self.previous.item_biases()
            previous = Previous(queries, vectors, biases)
        pool = self._pool(numbers, targets) if self.loss.reads_pool else targets
        return Places(
            self.progress.updates,
            numbers,
            rows,
            targets,
            pool,
            self._positives(batch),
            previous,
            examples.take(liked)[asked] if self.loss.reads_liked else None,
        )

    def _pool(self, numbers: Tensor, targets: Tensor) -> Tensor:
        """Return the targets of the whole batch, in the order of their places."""
        gathered = self.ranks.gather((numbers.cpu(), targets.cpu()))
        numbers, targets = (torch.cat(parts) for parts in zip(*gathered, strict=True))
        return targets[torch.argsort(numbers)].to(self.ranks.device)

    def _synced(self, last: bool) -> Any:
        if last or not isinstance(self.objective, DistributedDataParallel):
            return nullcontext()
        return self.objective.no_sync()

    def _cast(self) -> Any:
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.ranks.device.type, torch.bfloat16)

    def _rate(self, update: int) -> float:
        settings = self.settings.optimizer
        total = self.updates_an_epoch * self.settings.epochs
        return settings.rate * rate_factor(settings, update, total)

    # -- validation -----------------------------------------------------------------------------

    def _validate(self) -> None:
        counts = self.ranks.sum(rank_counts(self.network, self._held_out(), self.recommendable))
        settings, progress = self.settings.validation, self.progress
        value = metric(counts, settings, self.data.manifest.given_nothing)
        if value is None:
            return
        name = f"{settings.metric}@{settings.k}"
        progress.history[-1][name] = value
        if self.ranks.rank == 0 and self.reporter:
            self.reporter.measured(progress.epoch - 1, name, value)
        if value > progress.best:
            progress.best, progress.best_epoch, progress.misses = value, progress.epoch - 1, 0
            self.best_weights = {
                name: tensor.detach().cpu().clone()
                for name, tensor in self.network.state_dict().items()
            }
        else:
            progress.misses += 1

    def _held_out(self) -> Iterator[HeldOut]:
        for batch in self.measured.batches(0):
            targets = torch.from_numpy(batch.columns["target"]).to(self.ranks.device).long()
            seen = self._positives(batch)
            if not self.job.exclude_seen:
                seen = UserPositives(torch.zeros_like(seen.offsets), seen.items[:0])
            yield HeldOut(self._histories(batch), targets, seen)

    # -- checkpoints and the end ----------------------------------------------------------------

    def _save(self) -> None:
        tensors = {"weights": dict(self.network.state_dict()), "best": self.best_weights}
        if self.previous is not None:
            tensors["previous"] = dict(self.previous.state_dict())
        tensors["optimizer"], groups = state_tensors(self.optimizer, self.network)
        common: dict[str, dict[str, Tensor]] = {}
        rows: dict[str, dict[str, Tensor]] = {}
        for group, members in tensors.items():
            # A step count goes with a table too, but is none of its rows.
            own = {
                name: tensor
                for name, tensor in members.items()
                if name.partition("/")[0] in self.shards and tensor.dim() > 0
            }
            common[group] = {name: tensor for name, tensor in members.items() if name not in own}
            if own:
                rows[group] = own
        state = {"progress": vars(self.progress), "job": self._identity(), "groups": groups}
        save_checkpoint(
            self.job.checkpoints,
            self.progress.updates,
            Checkpoint(common, state, rows),
            self.settings.keep_checkpoints,
            self._shard,
            lambda hashes: dict(ChainMap(*self.ranks.gather(hashes))),
        )
        if self.ranks.count > 1:
            dist.barrier()

    def _resume(self) -> None:
        found = load_checkpoint(self.job.checkpoints, self._shard, self.ranks.gather)
        if found is None:
            return
        tensors = {
            group: {**members, **found.rows.get(group, {})}
            for group, members in found.tensors.items()
        }
        if found.state["job"] != self._identity():
            raise ValueError(
                f"{self.job.checkpoints} holds checkpoints of other settings or data: give another "
                "run_id, or remove them"
            )
        self.network.load_state_dict(tensors["weights"])
        self.best_weights = tensors["best"]
        if "previous" in tensors:
            self.previous = copy.deepcopy(self.network).eval()
            self.previous.load_state_dict(tensors["previous"])
        load_state(self.optimizer, self.network, tensors["optimizer"], found.state["groups"])
        self.progress = _Progress(**found.state["progress"])
        log.info("resumed", extra={"epoch": self.progress.epoch, "step": self.progress.step})

    @property
    def _shard(self) -> Shard:
        return Shard(self.ranks.rank, self.ranks.count)

    def _identity(self) -> dict[str, Any]:
        """Return what a checkpoint must have in common with the run that goes on from it."""
        identity = self.job.model_dump(mode="json", exclude={"folder", "processes"})
        return dict(json.loads(json.dumps(identity)))

    def _finish(self) -> dict[str, Any]:
        progress = self.progress
        if self.best_weights:
            self.network.load_state_dict(self.best_weights)
        metrics = {
            "validation": progress.best if progress.best_epoch >= 0 else None,
            "best_epoch": progress.best_epoch,
            "epochs": progress.epoch,
            "updates": progress.updates,
            "seconds": progress.seconds,
            "feed": self.reader,
            "history": progress.history,
        }
        if self.ranks.rank == 0 or self.shards:
            save_model(
                join(self.job.folder, "model"),
                self.network,
                name=self.job.name,
                settings=self.job.network.model,
                versions=self.job.versions,
            )
        if self.ranks.rank == 0:
            content = json.dumps(metrics, indent=1).encode()
            write_file(join(self.job.folder, "metrics.json"), content)
        if self.ranks.count > 1:
            dist.barrier()
        return metrics


def make_tables(settings: Training, ranks: Ranks) -> Tables:
    """Return how the tables of items and users are held."""
    sparse = settings.optimizer.tables == "sparse"
    if settings.sharded or sparse:
        return ShardedTables(ranks.rank, ranks.count, sparse)
    return WHOLE


def _check_tables(job: TrainingJob, network: SequenceNetwork, loss: Loss) -> None:
    """Refuse tables that this network or loss does not go with."""
    tables, sizes = network.sizes.tables, network.sizes
    if sizes.num_items < tables.count:
        raise ValueError(
            f"{sizes.num_items} items cannot be sharded over {tables.count} processes: leave out "
            "training.sharded"
        )
    if loss.reads_previous and tables.count > 1:
        raise ValueError(
            "hard negatives are looked for among all items, which no process has with "
            "training.sharded: take another sampler, or leave it out"
        )
    vectors = network.item_vectors()
    if len(vectors) != tables.num_rows(sizes.num_items):
        raise ValueError(
            f"{job.name} does not shard the vectors of its items: leave out training.sharded"
        )
    if job.network.training.optimizer.tables == "dense":
        return
    if loss.reads_all:
        raise ValueError(
            "cross_entropy updates all items in every step: give optimizer.tables dense, or a "
            "loss over sampled negatives"
        )
    if not vectors.is_leaf:
        raise ValueError(
            f"{job.name} computes all items' vectors from its table in every step: give "
            "optimizer.tables dense"
        )


def make_loss(
    settings: Mapping[str, Any], data: TrainingSet, seed: int, tables: Tables = WHOLE
) -> Loss:
    """Return the loss of these settings.

    Raises
    ------
    ValueError
        As :func:`read_loss`.
    """
    counts = torch.from_numpy(np.array(data.train_events()))
    recommendable = torch.from_numpy(np.array(data.recommendable()))
    return Loss(read_loss(settings), data.manifest.num_items, seed, counts, tables, recommendable)


def read_loss(settings: Mapping[str, Any]) -> LossSettings:
    """Return settings of a loss, those that are not given at their defaults: full cross-entropy.

    Raises
    ------
    ValueError
        If a setting is unknown or cannot be.
    """
    try:
        return TypeAdapter(LossSettings).validate_python({"name": "cross_entropy", **settings})
    except ValidationError as error:
        reasons = (f"loss.{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        raise ValueError("; ".join(reasons)) from None


def _part(places: Places, first: int, last: int) -> Places:
    """Return the places of rows ``first`` to ``last`` (exclusive), rows counted from ``first``."""
    assert places.positives is not None
    own = (places.owners >= first) & (places.owners < last)
    offsets, items = places.positives
    begin, end = offsets[first], offsets[last]
    previous = places.previous
    return places.take(own)._replace(
        owners=places.owners[own] - first,
        positives=UserPositives(offsets[first : last + 1] - begin, items[begin:end]),
        previous=previous and previous._replace(queries=previous.queries[own]),
    )


def _mixed(seed: int, update: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed % 2**64, update, rank]).generate_state(1, np.uint64)[0])
