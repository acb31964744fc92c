"""A lake in memory with the verbs that runs need, whose callers take turns by a seed.

A verb is atomic, as a Delta commit is. Before each, the caller gives way to one of the others,
whom the seed chooses, and may be killed: from then on all its calls fail.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyspark.errors import PySparkException

from recs.lake import Commit, Lake, Location
from recs.schema import Mode


class Killed(BaseException):
    """The caller's process is gone."""


class Turns:
    """Lets one of several threads run at a time; at each verb the seed chooses the next.

    ``kills`` maps numbers of actors to the verb at which they die.
    """

    def __init__(self, seed: int, kills: Mapping[int, int] | None = None) -> None:
        self.chance = random.Random(seed)
        self._kills = dict(kills or {})
        self._me = threading.local()
        self._waiting: dict[int, threading.Event] = {}

    def run(self, actors: Sequence[Callable[[], None]]) -> list[BaseException | None]:
        """Run actors to their ends; return what each has raised."""
        ended: list[BaseException | None] = [None] * len(actors)

        def act(number: int) -> None:
            self._me.number = number
            self._waiting[number].wait()
            try:
                actors[number]()
            except (Exception, Killed) as error:
                ended[number] = error
            del self._waiting[number]
            self._wake_one()

        self._waiting = {number: threading.Event() for number in range(len(actors))}
        threads = [threading.Thread(target=act, args=(number,)) for number in self._waiting]
        for thread in threads:
            thread.start()
        self._wake_one()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
        return ended

    def give_way(self) -> None:
        """Let another run; threads that are none of the actors, as their helpers, pass."""
        me = getattr(self._me, "number", None)
        if me is None:
            return
        if me in self._kills:
            if self._kills[me] == 0:
                raise Killed
            self._kills[me] -= 1
        mine = self._waiting[me]
        mine.clear()
        self._wake_one()
        mine.wait()

    def _wake_one(self) -> None:
        if self._waiting:
            self._waiting[self.chance.choice(sorted(self._waiting))].set()


@dataclass(frozen=True)
class Rows:
    """Stands for a DataFrame: its rows, values with the run that wrote them."""

    rows: tuple[Any, ...] = ()


@dataclass
class _Table:
    versions: list[Rows] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    transactions: dict[str, int] = field(default_factory=dict)


@dataclass
class Storage:
    """Tables by key, shared by the lakes of several processes."""

    turns: Turns
    tables: dict[str, _Table] = field(default_factory=dict)


class MemoryLake(Lake):
    """The verbs of a lake on :class:`Storage`, as one process sees it."""

    def __init__(self, storage: Storage, location: Location, mode: Mode = "backtest") -> None:
        self.spark: Any = None
        self.storage, self.location, self.mode = storage, location, mode
        self.ledger: tuple[int, list[Any]] | None = None
        self._mark: str | None = None

    def create(self, name: str) -> bool:
        self.storage.turns.give_way()
        if self.key(name) in self.storage.tables:
            return False
        self.storage.tables[self.key(name)] = _Table()
        self._commit(name, Rows(), "CREATE TABLE", self._mark)
        return True

    def newest(self, name: str) -> int | None:
        self.storage.turns.give_way()
        table = self.storage.tables.get(self.key(name))
        return None if table is None else len(table.versions) - 1

    def commits(self, name: str, after: int) -> list[Commit]:
        self.storage.turns.give_way()
        return self.storage.tables[self.key(name)].commits[after + 1 :]

    def load(self, name: str, version: int | None = None) -> Any:
        self.storage.turns.give_way()
        assert version is not None
        return self.storage.tables[self.key(name)].versions[version]

    def rows(self, name: str, version: int) -> list[Any]:
        return list(self.load(name, version).rows)

    def save(
        self,
        name: str,
        df: Any,
        how: str,
        *,
        run_id: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.storage.turns.give_way()
        assert options is not None
        rows = tuple((value, run_id) for value in df.rows)
        if how == "overwrite" or rows:
            before = () if how == "overwrite" else self._newest(name).rows
            self._commit(name, Rows(before + rows), "WRITE", options["userMetadata"], len(rows))

    def save_row(self, name: str, row: Mapping[str, Any], options: Mapping[str, str]) -> None:
        self.storage.turns.give_way()
        table = self.storage.tables[self.key(name)]
        app, number = options["txnAppId"], int(options["txnVersion"])
        if table.transactions.get(app, -1) >= number:
            if self.storage.turns.chance.random() < 0.5:
                raise PySparkException("ConcurrentTransactionException")
            return  # dropped without a word
        table.transactions[app] = number
        rows = Rows((*self._newest(name).rows, dict(row)))
        self._commit(name, rows, "WRITE", options["userMetadata"], 1)
        if self.storage.turns.chance.random() < 0.05:
            raise PySparkException("something after the commit")

    def delete(self, name: str, keys: Any, among: Any = None) -> None:
        self.storage.turns.give_way()
        before = self._newest(name).rows
        left = tuple(row for row in before if row[0] not in keys.rows)
        if left != before:
            self._commit(name, Rows(left), "MERGE", self._mark, deleted=len(before) - len(left))

    def restore(self, name: str, version: int) -> None:
        self.storage.turns.give_way()
        rows = self.storage.tables[self.key(name)].versions[version]
        self._commit(name, rows, "RESTORE", self._mark)

    def compact(self, name: str) -> None:
        self.storage.turns.give_way()
        self._commit(name, self._newest(name), "OPTIMIZE", self._mark)

    @contextmanager
    def commit_metadata(self, metadata: str) -> Iterator[None]:
        self._mark = metadata
        try:
            yield
        finally:
            self._mark = None

    def _newest(self, name: str) -> Rows:
        return self.storage.tables[self.key(name)].versions[-1]

    def _commit(
        self,
        name: str,
        rows: Rows,
        operation: str,
        mark: str | None,
        new: int = 0,
        deleted: int = 0,
    ) -> None:
        table = self.storage.tables[self.key(name)]
        version = len(table.versions)
        table.versions.append(rows)
        table.commits.append(Commit(version, 0.0, mark, operation, rows=new, deleted=deleted))
