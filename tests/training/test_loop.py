"""The loop: the same weights for any number of processes, and for a run that was killed."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import recs.training.loop
import recs.training.worker
from recs.nn.network import Histories
from recs.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    read_folder,
    save_checkpoint,
)
from recs.training.dataset import TrainingSet, write_manifest
from recs.training.loop import Ranks, TrainingError, train
from recs.training.model_folder import ModelFolderError, load_model
from recs.training.settings import Network, Optimizer, Processes, Training, TrainingJob, Validation
from tests.training.conftest import LENGTH, NUM_ITEMS, histories
from tests.training.test_feeds import needs_petastorm

MODEL = {"dim": 16, "dropout": 0.0}
DIRS = ("one", "two")


def job_of(
    training_set: TrainingSet,
    folder: str,
    *,
    name: str = "sasrec",
    loss: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **training: Any,
) -> TrainingJob:
    settings = {
        "epochs": 3,
        "batch_size": 16,
        "feed": "arrow",
        "optimizer": Optimizer(rate=3e-3, warm_up_steps=5),
        **training,
    }
    network = Network(model=MODEL | (model or {}), loss=loss or {}, training=Training(**settings))
    return TrainingJob(
        name=name,
        training_set=training_set.folder,
        folder=folder,
        network=network,
        processes=Processes(threads=1),
        seed=3,
    )


def run(job: TrainingJob, processes: int) -> subprocess.Popen[str]:
    """Start the worker script as torchrun does, without Spark."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(job.model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, recs.training.worker.__file__, str(folder / "job.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def weights_of(folder: str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model" / "weights.safetensors")


def scores_of(folder: str) -> Tensor:
    """Return what a trained network says of some histories.

    Not its weights: the gradient of an attention's key bias is nothing but rounding, which Adam
    makes whole steps of.
    """
    network, _ = load_model(f"{folder}/model")
    items = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        queries = network.queries(Histories(torch.arange(2), items, items * 0, items * 0))
        return queries @ network.item_vectors().T


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class TestTraining:
    def test_learns_what_follows_what(self, training_set: TrainingSet, folder: str) -> None:
        job = job_of(training_set, folder, epochs=15, model={"dim": 32})
        # The items come round again: what comes next has mostly been seen.
        metrics = train(job.model_copy(update={"exclude_seen": False}), Ranks())
        assert metrics["validation"] > 0.8
        losses = [row["loss"] for row in metrics["history"]]
        assert losses[-1] < losses[0] / 2

    @pytest.mark.parametrize(
        "name, loss",
        [
            ("bert4rec", {"name": "sampled_cross_entropy"}),
            ("gru4rec", {"name": "bpr_max"}),
            ("sasrec", {"name": "bce", "sampler": {"name": "hard", "negatives": 2, "top": 5}}),
            ("sasrec", {"name": "in_batch_softmax"}),
            ("fpmc", {"name": "bpr"}),
            ("lstm", {"name": "relevance"}),
            ("bert4rec", {"name": "relevance"}),
        ],
    )
    def test_models_and_losses_go_together(
        self, training_set: TrainingSet, folder: str, name: str, loss: dict[str, Any]
    ) -> None:
        pooled = (name, loss["name"]) == ("bert4rec", "relevance")
        model = {"pooling": "mean"} if pooled else {}
        train(job_of(training_set, folder, name=name, loss=loss, model=model, epochs=2), Ranks())
        network, _ = load_model(f"{folder}/model")
        assert all(torch.isfinite(p).all() for p in network.parameters())

    def test_parts_of_a_batch_make_the_same_updates(
        self, training_set: TrainingSet, tmp_path: Path
    ) -> None:
        loss = {"name": "bce", "sampler": {"name": "uniform", "negatives": 4}}
        for parts in (1, 4):
            job = job_of(training_set, str(tmp_path / str(parts)), loss=loss, accumulate=parts)
            train(job, Ranks())
        whole, parted = (scores_of(str(tmp_path / str(parts))) for parts in (1, 4))
        assert torch.allclose(whole, parted, rtol=0, atol=1e-4)

    def test_stops_when_nothing_gets_better(self, training_set: TrainingSet, folder: str) -> None:
        # At this rate nothing is learned, so that the first measurement stays the best.
        job = job_of(
            training_set,
            folder,
            epochs=9,
            optimizer=Optimizer(rate=1e-12),
            validation=Validation(patience=2),
        )
        assert train(job, Ranks())["epochs"] == 3

    def test_the_end_is_measured_however_rarely_it_is(
        self, training_set: TrainingSet, folder: str
    ) -> None:
        job = job_of(training_set, folder, epochs=3, validation=Validation(every=2))
        metrics = train(job, Ranks())
        assert ["ndcg@10" in row for row in metrics["history"]] == [False, True, True]

    def test_a_loss_that_is_no_number_is_told(self, training_set: TrainingSet, folder: str) -> None:
        job = job_of(training_set, folder, optimizer=Optimizer(rate=1e30, clip=None))
        with pytest.raises(TrainingError, match=r"lower optimizer\.rate"):
            train(job, Ranks())

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"model": {"width": 3}}, "width"),
            ({"loss": {"name": "bce", "negatives": 3}}, "loss"),
            ({"name": "sasreck"}, "sasrec"),
            ({"batch_size": 6}, "multiple of 4"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(
        self, training_set: TrainingSet, folder: str, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            train(job_of(training_set, folder, **settings), Ranks())


class Others(Ranks):
    """One process that believes itself beside another, where Petastorm is or is not."""

    reads = True

    def gather(self, value: Any) -> list[Any]:
        return [value, self.reads] if isinstance(value, bool) else super().gather(value)


class WithoutPetastorm(Others):
    reads = False


class TestFeed:
    @pytest.mark.parametrize(
        "reads, ranks, feed",
        [
            (False, Others(), "arrow"),
            (True, WithoutPetastorm(), "arrow"),
            pytest.param(True, Others(), "petastorm", marks=needs_petastorm),
        ],
    )
    def test_auto_is_what_all_ranks_have(
        self,
        training_set: TrainingSet,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        reads: bool,
        ranks: Ranks,
        feed: str,
    ) -> None:
        monkeypatch.setattr(logging.getLogger("recs"), "propagate", True)
        caplog.set_level(logging.INFO, "recs")
        monkeypatch.setattr(recs.training.loop, "petastorm_reads", lambda: reads)
        metrics = train(job_of(training_set, str(tmp_path / "auto"), feed="auto", epochs=1), ranks)
        assert metrics["feed"] == feed
        assert json.loads((tmp_path / "auto" / "metrics.json").read_text())["feed"] == feed
        assert f"the training set is read by {feed}" in caplog.text
        # And whatever reads, the network is the same.
        train(job_of(training_set, str(tmp_path / "arrow"), epochs=1), Ranks())
        auto, arrow = (weights_of(str(tmp_path / name)) for name in ("auto", "arrow"))
        assert all(torch.equal(auto[name], arrow[name]) for name in arrow)

    def test_a_feed_that_is_not_installed_is_told(
        self, training_set: TrainingSet, folder: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "petastorm", None)
        with pytest.raises(ValueError, match="not installed: give auto or arrow, or install recs"):
            train(job_of(training_set, folder, feed="petastorm"), Ranks())


def test_a_training_set_that_asks_for_nothing_is_refused(
    training_set: TrainingSet, tmp_path: Path, folder: str
) -> None:
    shutil.copytree(training_set.folder, tmp_path / "set")
    manifest = dataclasses.replace(training_set.manifest, positive_event_types=[])
    unwanted = write_manifest(str(tmp_path / "set"), manifest)
    with pytest.raises(ValueError, match="asks for nothing"):
        train(job_of(unwanted, folder), Ranks())
    assert not (Path(folder) / "model").exists()


class TestProcesses:
    @pytest.mark.parametrize(
        "settings",
        [
            {"loss": {"name": "bce", "sampler": {"name": "uniform", "negatives": 3}}},
            {"loss": {"name": "in_batch_softmax"}},
            {"name": "bert4rec"},
        ],
    )
    def test_two_make_the_updates_of_one(
        self, training_set: TrainingSet, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        train(job_of(training_set, str(tmp_path / "one"), **settings), Ranks())
        process = run(job_of(training_set, str(tmp_path / "two"), **settings), 2)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert "epoch 3, validation ndcg@10" in output
        # Sums over ranks are added up in another order: scores differ in the last digits.
        one, two = (scores_of(str(tmp_path / name)) for name in ("one", "two"))
        assert one.abs().max() > 0.1 and torch.allclose(one, two, rtol=0, atol=1e-4)

    def test_any_number_measures_the_same(self, training_set: TrainingSet, tmp_path: Path) -> None:
        found = []
        for processes in (1, 2, 4):
            folder = tmp_path / str(processes)
            # So slow that weights stay what they were drawn as, the same for all.
            job = job_of(training_set, str(folder), epochs=1, optimizer=Optimizer(rate=1e-30))
            process = run(job, processes)
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
            (line,) = [text for text in output.splitlines() if "validation" in text]
            metrics = json.loads((folder / "metrics.json").read_text())
            found.append((line, metrics["validation"]))
        assert len(set(found)) == 1

    @pytest.mark.parametrize("exclude_seen", [True, False])
    def test_validation_ranks_as_lists_are_made(
        self, training_set: TrainingSet, folder: str, exclude_seen: bool
    ) -> None:
        """Most targets are repeats: not ranked if what was seen is left out, else as any item."""
        job = job_of(training_set, folder, epochs=1, optimizer=Optimizer(rate=1e-30))
        metrics = train(job.model_copy(update={"exclude_seen": exclude_seen}), Ranks())
        network, _ = load_model(f"{folder}/model")
        positives = training_set.positives()
        gains = []
        for user, (*items, target) in enumerate(histories()):
            read = torch.tensor([items[-(LENGTH - 1) :]])
            with torch.no_grad():
                queries = network.queries(Histories(torch.tensor([user]), read, read * 0, read * 0))
                scores = (queries @ network.item_vectors().T)[0]
            seen = positives.items[slice(*positives.offsets[user : user + 2])].tolist()
            if exclude_seen and target in seen:
                gains.append(0.0)
                continue
            others = [
                i for i in range(NUM_ITEMS) if i != target and not (exclude_seen and i in seen)
            ]
            rank = 1 + sum(bool(scores[i] >= scores[target]) for i in others)
            gains.append(1 / math.log2(rank + 1) if rank <= 10 else 0.0)
        assert 0 < gains.count(0.0) < len(gains)
        users = len(gains) + training_set.manifest.given_nothing
        assert metrics["validation"] == pytest.approx(sum(gains) / users)

    def test_what_a_process_fails_of_is_written_down(
        self, training_set: TrainingSet, folder: str
    ) -> None:
        process = run(job_of(training_set, folder, model={"width": 3}), 2)
        process.communicate(timeout=200)
        assert process.returncode != 0
        assert "width" in (Path(folder) / "errors" / "rank-0.txt").read_text()


class TestSharding:
    @pytest.mark.parametrize(
        ("name", "loss", "optimizer"),
        [
            ("sasrec", {"name": "cross_entropy"}, {}),
            ("fpmc", {"name": "bpr", "sampler": {"name": "in_batch"}}, {"tables": "sparse"}),
        ],
    )
    def test_shards_make_the_updates_of_whole_tables(
        self,
        training_set: TrainingSet,
        tmp_path: Path,
        name: str,
        loss: dict[str, Any],
        optimizer: dict[str, Any],
    ) -> None:
        settings: dict[str, Any] = {
            "name": name,
            "loss": loss,
            "accumulate": 2,
            "optimizer": Optimizer(rate=3e-3, warm_up_steps=5, **optimizer),
        }
        whole = train(job_of(training_set, str(tmp_path / "one"), **settings), Ranks())
        process = run(job_of(training_set, str(tmp_path / "two"), sharded=True, **settings), 2)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        sharded = json.loads((tmp_path / "two" / "metrics.json").read_text())
        for expected, found in zip(whole["history"], sharded["history"], strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
            assert found["ndcg@10"] == pytest.approx(expected["ndcg@10"], abs=0.02)
        # The folders are of one kind: the tables whole, and read without any processes.
        shapes = ({key: t.shape for key, t in weights_of(str(tmp_path / d)).items()} for d in DIRS)
        assert next(shapes) == next(shapes)
        one, two = (scores_of(str(tmp_path / name)) for name in DIRS)
        assert one.abs().max() > 0.1 and torch.allclose(one, two, rtol=0, atol=1e-3)

    def test_any_number_goes_on_from_a_checkpoint(
        self, training_set: TrainingSet, tmp_path: Path
    ) -> None:
        settings: dict[str, Any] = {
            "loss": {"name": "bce"},
            "sharded": True,
            "checkpoint_steps": 5,
            "keep_checkpoints": 100,
        }
        whole = tmp_path / "whole"
        process = run(job_of(training_set, str(whole), **settings), 2)
        assert process.wait(timeout=200) == 0
        steps = sorted(int(path.name[5:]) for path in (whole / "checkpoints").glob("step-*"))
        for processes in (1, 2):
            folder = tmp_path / str(processes)
            shutil.copytree(whole / "checkpoints", folder / "checkpoints")
            for step in steps[len(steps) // 2 :]:
                shutil.rmtree(folder / "checkpoints" / f"step-{step}")
            # The newest that is left is damaged for one of the processes, and so for all.
            newest = folder / "checkpoints" / f"step-{steps[len(steps) // 2 - 1]}"
            (newest / "optimizer.1-of-2.safetensors").write_bytes(b"")
            process = run(job_of(training_set, str(folder), **settings), processes)
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0 and "resumed" in output, output
        assert all(
            torch.equal(tensor, weights_of(str(tmp_path / "2"))[name])
            for name, tensor in weights_of(str(whole)).items()
        )
        found, expected = (scores_of(str(path)) for path in (tmp_path / "1", whole))
        assert torch.allclose(found, expected, rtol=0, atol=1e-3)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"loss": {"name": "cross_entropy"}}, "optimizer.tables dense, or a loss"),
            ({"name": "transrec", "loss": {"name": "bpr"}}, "transrec computes all items' vectors"),
        ],
    )
    def test_sparse_updates_that_cannot_be_are_refused(
        self, training_set: TrainingSet, folder: str, settings: dict[str, Any], message: str
    ) -> None:
        sparse = Optimizer(tables="sparse")
        with pytest.raises(ValueError, match=message):
            train(job_of(training_set, folder, optimizer=sparse, **settings), Ranks())

    def test_shards_that_cannot_be_are_refused(
        self, training_set: TrainingSet, folder: str
    ) -> None:
        hard = {"name": "bce", "sampler": {"name": "hard"}}
        with pytest.raises(ValueError, match="hard negatives"):
            train(job_of(training_set, folder, sharded=True, loss=hard), Ranks(0, 2))
        with pytest.raises(ValueError, match="30 items cannot be sharded over 31"):
            train(job_of(training_set, folder, sharded=True), Ranks(0, 31))
        with pytest.raises(ValueError, match="not compiled"):
            job_of(training_set, folder, sharded=True, compile=True)
        job = job_of(training_set, folder, optimizer=Optimizer(tables="sparse"))
        two = {"processes": Processes(count=2)}
        with pytest.raises(ValueError, match=r"give training\.sharded true"):
            TrainingJob.model_validate(dict(job) | two)


class TestResuming:
    def test_a_killed_run_ends_as_an_unbroken_one(
        self, training_set: TrainingSet, tmp_path: Path
    ) -> None:
        settings: dict[str, Any] = {
            "epochs": 6,
            "checkpoint_steps": 2,
            "model": {"dropout": 0.3},
            "loss": {"name": "bce", "sampler": {"name": "hard", "top": 5}},
        }
        unbroken = train(job_of(training_set, str(tmp_path / "whole"), **settings), Ranks())
        folder = tmp_path / "broken"
        for step in (4, 18, 22):  # in the first epoch, between two, and in the third
            process = run(job_of(training_set, str(folder), **settings), 1)
            reached = folder / "checkpoints"
            deadline = time.monotonic() + 100
            while not any(
                int(path.name[5:]) >= step for path in reached.glob("step-*") if reached.exists()
            ):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        resumed = run(job_of(training_set, str(folder), **settings), 1)
        output, _ = resumed.communicate(timeout=200)
        assert resumed.returncode == 0 and "resumed" in output
        whole, broken = weights_of(str(tmp_path / "whole")), weights_of(str(folder))
        assert all(torch.equal(tensor, broken[name]) for name, tensor in whole.items())
        history = json.loads((folder / "metrics.json").read_text())["history"]
        assert [row["loss"] for row in history] == [row["loss"] for row in unbroken["history"]]

    def test_checkpoints_of_other_settings_are_refused(
        self, training_set: TrainingSet, folder: str
    ) -> None:
        train(job_of(training_set, folder, epochs=1), Ranks())
        with pytest.raises(ValueError, match="other settings"):
            train(job_of(training_set, folder, epochs=2), Ranks())


class TestCheckpoints:
    @staticmethod
    def checkpoint(value: float) -> Checkpoint:
        return Checkpoint({"weights": {"w": torch.full((3,), value)}}, {"value": value})

    def test_the_newest_is_read_and_old_ones_go(self, folder: str) -> None:
        for step in (5, 10, 15):
            save_checkpoint(folder, step, self.checkpoint(step), keep=2)
        found = load_checkpoint(folder)
        assert found is not None and found.state == {"value": 15}
        assert torch.equal(found.tensors["weights"]["w"], torch.full((3,), 15.0))
        assert (Path(folder) / "latest").read_text() == "step-15"
        assert sorted(path.name for path in Path(folder).glob("step-*")) == ["step-10", "step-15"]

    @pytest.mark.parametrize("pointer", [None, b"step-7", b"\xff"])
    def test_without_a_pointer_the_newest_is_read(self, folder: str, pointer: bytes | None) -> None:
        for step in (5, 10):
            save_checkpoint(folder, step, self.checkpoint(step), keep=2)
        latest = Path(folder) / "latest"
        latest.unlink() if pointer is None else latest.write_bytes(pointer)
        found = load_checkpoint(folder)
        assert found is not None and found.state == {"value": 10}

    @pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
    @pytest.mark.parametrize("damage", ["torn", "lost", "changed"])
    def test_a_damaged_one_is_passed_over(self, folder: str, name: str, damage: str) -> None:
        for step in (5, 10):
            save_checkpoint(folder, step, self.checkpoint(step), keep=2)
        path = Path(folder) / "step-10" / name
        content = path.read_bytes()
        if damage == "lost":
            path.unlink()
        elif damage == "torn":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.write_bytes(b"\0" + content[1:])
        with pytest.raises(CheckpointError):
            read_folder(str(path.parent))
        found = load_checkpoint(folder)
        assert found is not None and found.state == {"value": 5}

    def test_damaged_ones_of_later_steps_make_way(self, folder: str) -> None:
        for step in (4, 6):
            save_checkpoint(folder, step, self.checkpoint(step), keep=2)
            (Path(folder) / f"step-{step}" / "manifest.json").unlink()
        save_checkpoint(folder, 2, self.checkpoint(2), keep=2)
        assert [path.name for path in Path(folder).glob("step-*")] == ["step-2"]
        assert load_checkpoint(folder) is not None

    def test_one_that_another_process_does_not_see_is_passed_over(self, folder: str) -> None:
        for step in (5, 10):
            save_checkpoint(folder, step, self.checkpoint(step), keep=2)
        # What this process and another say: which steps they see, and whether each is whole.
        answers: Iterator[Any] = iter([[[10, 5], []], [True, False], [True, True]])
        found = load_checkpoint(folder, gather=lambda value: next(answers))
        assert found is not None and found.state == {"value": 5}
        assert next(answers, None) is None

    def test_none_is_none(self, folder: str) -> None:
        assert load_checkpoint(folder) is None


class TestModelFolder:
    def test_holds_the_network_and_what_it_is_of(
        self, training_set: TrainingSet, folder: str
    ) -> None:
        job = job_of(training_set, folder, epochs=1).model_copy(
            update={"versions": {"item_ids": "4"}}
        )
        train(job, Ranks())
        network, versions = load_model(f"{folder}/model")
        assert versions == {"item_ids": "4"} and not network.training
        for name, tensor in weights_of(folder).items():
            assert torch.equal(network.state_dict()[name], tensor)

    def test_another_format_is_refused(self, training_set: TrainingSet, folder: str) -> None:
        train(job_of(training_set, folder, epochs=1), Ranks())
        from recs.training.checkpoint import write_folder

        tensors, documents = read_folder(f"{folder}/model")
        documents["config"]["format"] = 99
        write_folder(f"{folder}/model", tensors, documents)
        with pytest.raises(ModelFolderError, match="format 99"):
            load_model(f"{folder}/model")
