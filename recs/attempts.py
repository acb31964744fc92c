"""Attempts at a stage: which is at work, the folder that each works in, and which was killed.

An attempt at work tells of itself in a file of its own, twice a minute. One that has not for five
minutes was killed, and so was one whose process is gone, which those can tell that see the same
processes: the next attempt at any stage of the lake removes its folder. A folder of an attempt at
work is never touched. While one is at work no other begins with the same stage, unless it takes the
stage over. Two that begin at one moment may both go on: of them one cannot commit, see
:mod:`recs.runs`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recs.errors import UserError
from recs.lake import Location
from recs.storage import children, exists, filesystem, folder_name, remove_tree, write_file

log = logging.getLogger("recs")

_BEAT_SECONDS = 30.0
_DEAD_AFTER_SECONDS = 300.0
#: Of a file beside an attempt's own: another has taken its stage over.
_TAKEN = ".taken"


class AtWork(UserError):
    """Another attempt at the stage is at work."""


@dataclass
class Attempt:
    """An attempt at a stage of a run.

    Attributes
    ----------
    stage
        With the model that it is of, as ``fit/slim``.
    writes
        Keys of the tables that it may write; None: any.
    number
        1, 2, … of this run and stage, for people to read: two that start at once have the same.
    token
        16 hex digits that no other attempt has.
    """

    location: Location
    mode: str
    run_id: str
    stage: str
    writes: list[str] | None = None
    number: int = 1
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    _began: float = field(default_factory=time.time)
    _ended: threading.Event = field(default_factory=threading.Event)
    _teller: threading.Thread | None = None

    @property
    def folder(self) -> str:
        """Folder of the attempt's working files, for which it may be made."""
        return _folder(self.location, self._name)

    @property
    def _name(self) -> str:
        parts = self.mode, self.stage.replace("/", "."), folder_name(self.run_id), self.token
        return "-".join(parts)

    @property
    def _is_of(self) -> dict[str, Any]:
        """What others may know of the attempt."""
        return {"mode": self.mode, "stage": self.stage, "run_id": self.run_id}

    def begin(self, *, take_over: bool = False) -> None:
        """Tell from now on that this attempt is at work, and remove what killed ones left.

        Raises
        ------
        AtWork
            If another is at work at the stage, and is not to be taken over.
        """
        self._tell()
        rivals = []
        for name, told in _noted(self.location).items():
            if name == self._name:
                continue
            if told.items() >= self._is_of.items():
                self.number = max(self.number, told.get("number", 0) + 1)
            if _is_dead(told):
                _remove(self.location, name)
            elif (told.get("mode"), told.get("stage")) == (self.mode, self.stage):
                rivals.append((told["began"], name, told))
        # Of two that begin at once, each of which sees the other, one goes on.
        rivals = [rival for rival in rivals if rival[:2] < (self._began, self._name)]
        if rivals and not take_over:
            self.end()
            raise AtWork(_at_work(self.stage, rivals[0][2]))
        for _, name, _ in rivals:
            write_file(_note(self.location, name + _TAKEN), b"")
        if self.number > 1:  # which was not known before
            self._tell()
        self._teller = threading.Thread(target=self._keep_telling, daemon=True)
        self._teller.start()

    def is_taken_over(self) -> bool:
        """Tell whether another attempt has taken the stage over."""
        return exists(_note(self.location, self._name + _TAKEN))

    def end(self) -> None:
        """Remove the working files."""
        self._ended.set()
        if self._teller is not None:
            self._teller.join()
        _remove(self.location, self._name)

    def _keep_telling(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            try:
                self._tell()
            except Exception as error:  # the next minute may be better
                log.warning("an attempt cannot tell that it is at work: %s", error)

    def _tell(self) -> None:
        told = {
            **self._is_of,
            "number": self.number,
            "writes": self.writes,
            "began": self._began,
            "seen": time.time(),
            "host": platform.node(),
            "processes": _processes(),
            "process": os.getpid(),
            "started": _started(os.getpid()),
        }
        write_file(_note(self.location, self._name), json.dumps(told).encode())


def at_work(location: Location) -> list[dict[str, Any]]:
    """Return what attempts at work tell of themselves: mode, stage, run_id, writes and more.

    ``writes`` are the keys of the tables that they may write; None where they may write any.
    """
    return [told for told in _noted(location).values() if not _is_dead(told)]


def _at_work(stage: str, told: dict[str, Any]) -> str:
    began = datetime.fromtimestamp(told["began"], UTC)
    return (
        f"run {told['run_id']} is at work at {stage} since {began:%Y-%m-%d %H:%M:%S} UTC (process "
        f"{told['process']} on {told['host']}): wait for its end, or give --take-over to go on in "
        "its place"
    )


def _folder(location: Location, name: str) -> str:
    return location.work("attempts", name)


def _note(location: Location, name: str) -> str:
    return location.work("running", name)


def _noted(location: Location) -> dict[str, dict[str, Any]]:
    """Return what attempts tell of themselves that were not ended, at work or killed, by name."""
    told = {}
    for name in children(location.work("running")):
        if not name.endswith((_TAKEN, ".part")):
            fs, path = filesystem(_note(location, name))
            with contextlib.suppress(FileNotFoundError, ValueError):  # just ended, or just telling
                told[name] = json.loads(fs.cat_file(path))
    return told


def _is_dead(told: dict[str, Any]) -> bool:
    if told.get("processes") == _processes():
        # However long ago it has told anything: this machine may have slept.
        another = "started" in told and told["started"] != _started(told["process"])
        return another or not _runs(told["process"])
    return time.time() - float(told["seen"]) > _DEAD_AFTER_SECONDS


def _processes() -> str:
    """Name the processes that this one sees: those of a host since it started, or a container's.

    Containers may have a host's name and count their processes anew.
    """
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # no Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(process: int) -> str | None:
    """Return when a process began, in ticks since the machine did; None where it is not told.

    Of two processes of one number only one is as old.
    """
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(location: Location, name: str) -> None:
    """Remove an attempt's folder, and after it the file that leads there."""
    with contextlib.suppress(FileNotFoundError):  # another attempt removes it too
        remove_tree(_folder(location, name))
        remove_tree(_note(location, name + _TAKEN))
        remove_tree(_note(location, name))
