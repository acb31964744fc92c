"""The commit protocol under thousands of interleavings, kills and others' upkeep, in memory.

Several processes run stages on shared tables; before each call to the lake the seed lets another go
on, and some die amid theirs. What consumers read has to be what the finished runs wrote, in order.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from recs.attempts import AtWork
from recs.lake import Location
from recs.ledger import ConcurrentRun, Ledger
from recs.runs import Run
from tests.memory_lake import Killed, MemoryLake, Rows, Storage, Turns

TABLES = ("user_ids", "item_ids", "ranks/slim")
SEEDS = 2_000


class Broken(Exception):
    """A stage fails."""


@dataclass
class Job:
    """A run of a stage: what it does to tables, in order."""

    stage: str
    run_id: str
    steps: list[tuple[str, str, str]]
    breaks: bool = False
    take_over: bool = False
    committed: bool = False

    def __call__(self, lake: MemoryLake) -> None:
        run = Run(lake, self.stage, self.run_id, config_hash="c", take_over=self.take_over)
        with run:
            for how, table, value in self.steps:
                if how == "keep":
                    run.keep(table)
                elif how == "replace":
                    run.replace(table, Rows((value,)), Rows((first_of(value),)))  # type: ignore[arg-type]
                else:
                    run.write(table, Rows((value,)), how)  # type: ignore[arg-type]
            if self.breaks:
                raise Broken
        self.committed = True


def first_of(value: str) -> str:
    """Return the value that a run writes first."""
    return f"{value.partition('.')[0]}.0"


def job(chance: random.Random, stage: str, number: int) -> Job:
    """Return a run by chance; values tell which run wrote them and in which step."""
    steps = [
        (
            chance.choice(("append", "append", "overwrite", "replace", "keep")),
            chance.choice(TABLES),
            f"r{number}.{step}",
        )
        for step in range(chance.randint(1, 3))
    ]
    return Job(stage, f"r{number}", steps, breaks=chance.random() < 0.2)


def upkeep(lake: MemoryLake) -> None:
    """Do what a platform does to tables by itself."""
    chance = lake.storage.turns.chance
    for _ in range(3):
        lake.storage.turns.give_way()
        there = sorted(lake.storage.tables)
        if there:
            name = chance.choice(there).removeprefix("backtest/")
            operation = chance.choice(("OPTIMIZE", "VACUUM END", "SET TBLPROPERTIES"))
            lake._commit(name, lake._newest(name), operation, None)


def require_right(storage: Storage, location: Location, jobs: list[Job]) -> None:
    """Hold tables as committed against what the finished runs, in order, have done to them."""
    lake = MemoryLake(storage, location)
    rows = Ledger(lake).rows()
    assert [row["sequence"] for row in rows] == list(range(len(rows)))
    finished = [row["run_id"] for row in rows if row["state"] == "finished"]
    by_run = {job.run_id: job for job in jobs}
    assert {job.run_id for job in jobs if job.committed} <= set(finished)
    content: dict[str, list[tuple[str, str]]] = {table: [] for table in TABLES}
    for run_id in finished:
        for how, table, value in by_run[run_id].steps:
            if how == "overwrite":
                content[table] = []
            if how == "replace":
                content[table] = [row for row in content[table] if row[0] != first_of(value)]
            if how != "keep":
                content[table].append((value, run_id))
    versions = Ledger(lake).versions()
    for table in TABLES:
        version = versions.get(lake.key(table))
        found = () if version is None else lake.load(table, version).rows
        assert sorted(found) == sorted(content[table]), table
    # The next run finds each table as it is committed, whatever the others have left there.
    with Run(lake, "next", "next", config_hash="c") as run:
        for table in TABLES:
            run.keep(table)
            assert sorted(lake._newest(table).rows) == sorted(content[table]), table


def played(seed: int, folder: Path) -> dict[str, int]:
    """Let runs by chance interleave, and hold what they leave; return how they have ended."""
    chance = random.Random(seed)
    jobs = [job(chance, f"stage{n}", n) for n in range(chance.randint(2, 4))]
    if chance.random() < 0.3:  # at a stage at which another is, in whose place it may go on
        jobs.append(job(chance, "stage0", len(jobs)))
        jobs[-1].take_over = chance.random() < 0.7
    kills = {n: chance.randint(0, 40) for n in range(len(jobs)) if chance.random() < 0.3}
    storage, location = Storage(Turns(seed, kills)), Location(str(folder))

    def process(work: Callable[[MemoryLake], None]) -> Callable[[], None]:
        return lambda: work(MemoryLake(storage, location))

    ended = {"committed": 0}
    processes = [*map(process, jobs), process(upkeep)]
    for error in storage.turns.run(processes):
        if error is not None:
            assert isinstance(error, ConcurrentRun | Broken | Killed | AtWork), repr(error)
            ended[type(error).__name__] = ended.get(type(error).__name__, 0) + 1
    ended["committed"] += sum(job.committed for job in jobs)
    require_right(storage, location, jobs)
    return ended


@pytest.mark.parametrize("part", range(4))
def test_whatever_interleaves_consumers_read_what_finished_runs_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr("recs.ledger._LONGEST_PAUSE_SECONDS", 0)
    ended: dict[str, int] = {}
    for seed in range(part * SEEDS // 4, (part + 1) * SEEDS // 4):
        try:
            found = played(seed, tmp_path / str(seed))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        for end, count in found.items():
            ended[end] = ended.get(end, 0) + count
    # No end is so rare that it is not tried.
    assert set(ended) == {"committed", "ConcurrentRun", "Broken", "Killed", "AtWork"}, ended
    assert min(ended.values()) > 20, ended
