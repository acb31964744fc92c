"""What a local Spark session's processes take at most, sampled."""

from __future__ import annotations

import os
import threading
from pathlib import Path

_PERIOD = 0.25  # seconds


class PeakMemory:
    """Peak of the JVM and of its Python workers together, while the ``with`` block runs.

    Memory is the proportional set size: a page that several processes map counts once in all.
    """

    def __init__(self) -> None:
        self._peaks = {"jvm": 0, "python_workers": 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def gib(self) -> dict[str, float]:
        """GiB of ``jvm`` and ``python_workers``."""
        return {name: round(peak / 2**30, 3) for name, peak in self._peaks.items()}

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_PERIOD):
            for name, size in process_bytes().items():
                self._peaks[name] = max(self._peaks[name], size)


def process_bytes() -> dict[str, int]:
    """Return the bytes of the JVM started by this process, and of the Python processes below it."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, rest = (folder / "stat").read_text().rsplit(")", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        parents[int(folder.name)] = int(rest.split()[1])
        names[int(folder.name)] = head.split("(", 1)[1]
    sizes = {"jvm": 0, "python_workers": 0}
    for process in parents:
        line = [process]
        while line[-1] in parents and line[-1] != os.getpid():
            line.append(parents[line[-1]])
        above = [names[p] for p in line[1:-1]]
        if line[-1] == os.getpid() and len(line) > 1:
            if names[process] == "java":
                sizes["jvm"] += _pss(process)
            elif "java" in above:
                sizes["python_workers"] += _pss(process)
    return sizes


def _pss(process: int) -> int:
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    line = next((line for line in rollup.splitlines() if line.startswith("Pss:")), "Pss: 0 kB")
    return int(line.split()[1]) * 1024
