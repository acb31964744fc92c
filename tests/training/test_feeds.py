"""One contract for both feeds: what they give is the plan's, whoever reads it."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recs.schema import SEQUENCE_ARRAYS
from recs.storage import SCHEMES, filesystem
from recs.training.dataset import TrainingSet, TrainingSetError, open_training_set
from recs.training.feeds import (
    Batch,
    Feed,
    FeedName,
    PetastormReader,
    columns_of,
    petastorm_reads,
)
from recs.training.plan import File, Plan
from tests.training.conftest import LANES, LENGTH, NUM_USERS, histories

# Not where it cannot read: whoever installs it means to read by it.
needs_petastorm = pytest.mark.skipif(
    importlib.util.find_spec("petastorm") is None, reason="petastorm is not installed"
)
READERS = (pytest.param("petastorm", marks=needs_petastorm), "arrow")


def feed_of(
    training_set: TrainingSet,
    reader: FeedName,
    *,
    part: str = "train",
    batch_size: int = 16,
    window: int = 100,
    rank: int = 0,
    num_ranks: int = 1,
    shuffle: bool = True,
) -> Feed:
    manifest = training_set.manifest
    plan = Plan(manifest.parts[part], manifest.lanes, batch_size, seed=5, shuffle=shuffle)
    columns = columns_of(training_set, part, SEQUENCE_ARRAYS)
    positives = training_set.positives()
    return Feed(training_set, part, plan, reader, columns, window, rank, num_ranks, positives)


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    """Return (user, items …) of each row, without padding."""
    rows = []
    for batch in batches:
        users, items = batch.columns["user_id"], batch.columns["items"]
        rows += [(int(u), *i[i >= 0].tolist()) for u, i in zip(users, items, strict=True) if u >= 0]
    return rows


def expected_rows() -> list[tuple[int, ...]]:
    return sorted((user, *items[:-1][-LENGTH:]) for user, items in enumerate(histories()))


@pytest.mark.parametrize("reader", READERS)
class TestFeeds:
    @pytest.mark.parametrize("num_ranks", [1, 2, 4])
    def test_every_row_comes_once_an_epoch_over_all_ranks(
        self, training_set: TrainingSet, reader: FeedName, num_ranks: int
    ) -> None:
        feeds = [
            feed_of(training_set, reader, rank=rank, num_ranks=num_ranks)
            for rank in range(num_ranks)
        ]
        batches = [list(feed.batches(0)) for feed in feeds]
        assert len({len(of_rank) for of_rank in batches}) == 1
        assert sorted(row for of_rank in batches for row in rows_of(of_rank)) == expected_rows()

    def test_ranks_share_the_batches_that_one_has(
        self, training_set: TrainingSet, reader: FeedName
    ) -> None:
        whole = list(feed_of(training_set, reader).batches(3))
        parts = [
            list(feed_of(training_set, reader, rank=rank, num_ranks=2).batches(3))
            for rank in range(2)
        ]
        for batch, *of_ranks in zip(whole, *parts, strict=True):
            order = np.argsort(np.concatenate([part.places for part in of_ranks]))
            for name, values in batch.columns.items():
                together = np.concatenate([part.columns[name] for part in of_ranks])[order]
                assert np.array_equal(together, values), name

    def test_epochs_differ_and_come_again(
        self, training_set: TrainingSet, reader: FeedName
    ) -> None:
        feed = feed_of(training_set, reader)
        first, second = rows_of(list(feed.batches(0))), rows_of(list(feed.batches(1)))
        assert first != second and sorted(first) == sorted(second)
        assert rows_of(list(feed.batches(0))) == first

    def test_resumed_at_a_step_the_following_batches_are_the_same(
        self, training_set: TrainingSet, reader: FeedName
    ) -> None:
        feed = feed_of(training_set, reader)
        whole = list(feed.batches(2))
        rest = list(feed.batches(2, start=3))
        assert [batch.step for batch in rest] == [batch.step for batch in whole[3:]]
        for ours, theirs in zip(rest, whole[3:], strict=True):
            assert all(np.array_equal(ours.columns[n], theirs.columns[n]) for n in ours.columns)

    def test_batches_are_as_wide_as_their_histories_need(
        self, training_set: TrainingSet, reader: FeedName
    ) -> None:
        widths = set()
        for batch in feed_of(training_set, reader).batches(0):
            lengths, width = batch.columns["length"], batch.columns["items"].shape[1]
            widths.add(width)
            shorter = max((w for w in (10, 14, 20, 28) if w < width), default=0)
            assert lengths.max() <= width
            assert lengths[batch.columns["user_id"] >= 0].min() > shorter
        assert widths == {10, 14, 20, 28, 40}

    def test_long_histories_give_another_window_each_epoch(
        self, training_set: TrainingSet, reader: FeedName
    ) -> None:
        feed = feed_of(training_set, reader, window=12)
        windows: dict[int, set[tuple[int, ...]]] = {}
        for epoch in range(3):
            for user, *items in rows_of(list(feed.batches(epoch))):
                assert len(items) <= 12
                windows.setdefault(user, set()).add(tuple(items))
        whole = {user: items for user, *items in expected_rows()}
        for user, found in windows.items():
            text = ",".join(map(str, whole[user]))
            assert all(",".join(map(str, items)) in text for items in found)
        assert sum(len(found) > 1 for found in windows.values()) > 40

    def test_without_shuffling_the_newest_events_are_kept(
        self, training_set: TrainingSet, reader: FeedName
    ) -> None:
        feed = feed_of(training_set, reader, window=12, shuffle=False)
        rows = {user: items for user, *items in rows_of(list(feed.batches(0)))}
        for user, *items in expected_rows():
            assert rows[user] == items[-12:]

    def test_positives_are_those_of_the_batch(
        self, training_set: TrainingSet, reader: FeedName
    ) -> None:
        everything = training_set.positives()
        for batch in feed_of(training_set, reader).batches(0):
            assert batch.positives is not None
            for row, user in enumerate(batch.columns["user_id"]):
                start, stop = batch.positives.offsets[row : row + 2]
                own = batch.positives.items[start:stop].tolist()
                bounds = everything.offsets[user : user + 2] if user >= 0 else (0, 0)
                assert own == everything.items[slice(*bounds)].tolist()

    def test_validation_has_the_target_of_every_user(
        self, training_set: TrainingSet, reader: FeedName
    ) -> None:
        targets = {}
        for batch in feed_of(training_set, reader, part="validation", shuffle=False).batches(0):
            for user, target in zip(batch.columns["user_id"], batch.columns["target"], strict=True):
                if user >= 0:
                    targets[int(user)] = int(target)
        assert targets == {user: items[-1] for user, items in enumerate(histories())}

    def test_a_folder_may_be_named_by_a_uri(
        self, training_set: TrainingSet, reader: FeedName
    ) -> None:
        for folder in (f"file:{training_set.folder}", f"file://{training_set.folder}"):
            found = rows_of(list(feed_of(open_training_set(folder), reader).batches(0)))
            assert found == rows_of(list(feed_of(training_set, reader).batches(0)))

    def test_a_folder_may_have_any_name(
        self, training_set: TrainingSet, reader: FeedName, tmp_path: Path
    ) -> None:
        folder = tmp_path / "lake #1 50% é? %23;x=[1]&y"
        shutil.copytree(training_set.folder, folder)
        found = rows_of(list(feed_of(open_training_set(str(folder)), reader).batches(0)))
        assert found == rows_of(list(feed_of(training_set, reader).batches(0)))

    def test_a_folder_may_be_remote(
        self, training_set: TrainingSet, reader: FeedName, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SCHEMES, "memory", "memory")
        remote, _ = filesystem("memory://lake")
        remote.put(training_set.folder, "/lake #1/set", recursive=True)
        feed = feed_of(training_set, reader)
        elsewhere = replace(
            feed, training_set=TrainingSet("memory://lake #1/set", feed.training_set.manifest)
        )
        assert rows_of(list(elsewhere.batches(0))) == rows_of(list(feed.batches(0)))

    def test_a_failure_to_read_is_raised(self, training_set: TrainingSet, reader: FeedName) -> None:
        feed = feed_of(training_set, reader)
        lost = [file._replace(name="lost.parquet") for file in feed.plan.files]
        plan = Plan(lost, LANES, 16, seed=5)
        broken = Feed(training_set, "train", plan, reader, feed.columns, 100)
        with pytest.raises(Exception, match="lost.parquet"):
            list(broken.batches(0))


@needs_petastorm
def test_petastorm_that_is_installed_reads() -> None:
    assert petastorm_reads()


@needs_petastorm
def test_petastorm_that_fails_with_what_is_here_is_not_read_by(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(reader: PetastormReader, uris: list[str]) -> None:
        raise AttributeError("module 'pyarrow' has no attribute 'filesystem'")

    monkeypatch.setattr(logging.getLogger("recs"), "propagate", True)
    monkeypatch.setattr(PetastormReader, "_read", fail)
    assert not petastorm_reads()
    assert "petastorm does not read here (AttributeError: module 'pyarrow'" in caplog.text


def test_petastorm_that_is_not_there_is_not_read_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "petastorm", None)
    assert not petastorm_reads()


def test_petastorm_that_never_returns_a_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PetastormReader, "_read", lambda reader, uris: [])
    with pytest.raises(OSError, match="did not return set/lost.parquet: train with feed=arrow"):
        list(PetastormReader(["items"]).read(["set/lost.parquet"]))


def test_leaving_a_feed_early_ends_its_thread(training_set: TrainingSet) -> None:
    import threading

    before = threading.active_count()
    batches = feed_of(training_set, "arrow").batches(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before + 2  # pyarrow's own


class TestPlan:
    def test_ranks_that_do_not_divide_the_lanes_are_refused(self) -> None:
        plan = Plan([File("a", 3, 8)] * 4, 4, 8, seed=0)
        with pytest.raises(ValueError, match="export.lanes"):
            next(plan.steps(0, 0, 3))

    def test_a_batch_that_lanes_do_not_divide_is_refused(self) -> None:
        with pytest.raises(ValueError, match="multiple of 4"):
            Plan([File("a", 3, 8)] * 4, 4, 6, seed=0)

    def test_resuming_is_starting_in_the_middle(self) -> None:
        plan = Plan([File(str(n), 5 + n % 2, 8 * (1 + n % 2)) for n in range(16)], 4, 8, seed=3)
        assert list(plan.steps(7, 1, 2))[4:] == list(plan.steps(7, 1, 2, start=4))
        assert len(list(plan.steps(7))) == plan.num_steps(7)

    def test_files_without_rows_are_never_read(self) -> None:
        plan = Plan([File("", 0, 8), File("a", 2, 8)], 2, 4, seed=0)
        (step,) = plan.steps(0)
        assert [cut.file for cut in step.slices] == [1]


class TestTrainingSet:
    def test_manifest_tells_what_it_was_made_of(self, training_set: TrainingSet) -> None:
        found = open_training_set(training_set.folder)
        assert found == training_set
        assert found.manifest.tables == {"sequences": 3}
        assert found.manifest.positive_event_types == [0]
        assert sum(file.rows for file in found.manifest.parts["train"]) == NUM_USERS

    def test_a_folder_without_manifest_is_no_training_set(self, tmp_path: object) -> None:
        with pytest.raises(TrainingSetError, match="run the stage export first"):
            open_training_set(str(tmp_path))
