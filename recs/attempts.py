"""Attempts at a stage: the folder that each works in, and how others tell whether it is alive.

An attempt at work writes the time into a file of its own each minute. One that has not for ten
minutes was killed, and so was one whose process is gone, which those can tell that see the same
processes: the next attempt at any stage of the lake removes its folder. A folder of an attempt at
work is never touched, not even by another attempt at the same stage of the same run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recs.lake import Location
from recs.storage import filesystem, folder_name, remove_tree

log = logging.getLogger("recs")

_BEAT_SECONDS = 60.0
_DEAD_AFTER_SECONDS = 600.0
_NAME = re.compile(r"^(?P<stage>(?:both|backtest|serve)-.+-[a-z_]+)-(?P<number>\d+)-[0-9a-f]{16}$")


@dataclass
class Attempt:
    """An attempt at a stage of a run.

    Attributes
    ----------
    number
        1, 2, … of this run and stage, for people to read: two that start at once have the same.
    token
        16 hex digits that no other attempt has.
    """

    location: Location
    mode: str
    run_id: str
    stage: str
    number: int = 1
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    _ended: threading.Event = field(default_factory=threading.Event)
    _teller: threading.Thread | None = None

    @property
    def folder(self) -> str:
        """Folder of the attempt's working files, for which it may be made."""
        return _folder(self.location, self._name)

    @property
    def _stage(self) -> str:
        return f"{self.mode}-{folder_name(self.run_id)}-{self.stage}"

    @property
    def _name(self) -> str:
        return f"{self._stage}-{self.number}-{self.token}"

    def begin(self, known: int) -> None:
        """Remove what killed attempts left, and tell from now on that this one is at work.

        Parameters
        ----------
        known
            Number of the last attempt at the stage that the ledger knows, 0 without one.
        """
        for name in _noted(self.location):
            parts = _NAME.match(name)
            if parts is None:
                continue
            if parts["stage"] == self._stage:
                known = max(known, int(parts["number"]))
            if _is_dead(self.location, name):
                _remove(self.location, name)
        self.number = known + 1
        self._tell()
        self._teller = threading.Thread(target=self._keep_telling, daemon=True)
        self._teller.start()

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
        seen = {"seen": time.time(), "processes": _processes(), "process": os.getpid()}
        fs, path = filesystem(_note(self.location, self._name))
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(path, json.dumps(seen).encode())


def _folder(location: Location, name: str) -> str:
    return location.work("attempts", name)


def _note(location: Location, name: str) -> str:
    return location.work("running", name)


def _noted(location: Location) -> list[str]:
    """Return the names of all attempts that were not ended, at work or killed."""
    fs, path = filesystem(location.work("running"))
    try:
        found = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return [name.rstrip("/").rpartition("/")[2] for name in found]


def _is_dead(location: Location, name: str) -> bool:
    fs, path = filesystem(_note(location, name))
    try:
        told: dict[str, Any] = json.loads(fs.cat_file(path))
    except (FileNotFoundError, ValueError):  # it has just ended, or is just telling
        return False
    if told.get("processes") == _processes():
        # However long ago it has told anything: this machine may have slept.
        return not _runs(told["process"])
    return time.time() - told["seen"] > _DEAD_AFTER_SECONDS


def _processes() -> str:
    """Name the processes that this one sees: those of a host since it started, or a container's.

    Containers may have a host's name and count their processes anew.
    """
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # no Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


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
        remove_tree(_note(location, name))
