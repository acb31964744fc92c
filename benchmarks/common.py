"""What every benchmark needs: its arguments, the hardware, the commit, and one JSON result.

A benchmark is run as ``python benchmarks/NAME.py key=value … [--json]``. Its last line is one JSON
document ``{"figures": {…}, "ratios": {…}, "hardware": …, "commit": …}``, which is also kept in
``benchmarks/results/NAME.json``; where arguments other than ``data`` and ``work`` are given, only
with ``keep=true``, so that a smaller run does not take the place of the whole one.

A ratio is theirs / ours in seconds, or in bytes where it is named ``memory``: above 1, ours is
better. ``two_processes_vs_one`` is one process's seconds / two's, ``rebuild_vs_day`` those of a
rebuild / a day's.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"

#: Arguments that change nothing of what is measured.
_PLACES = {"data", "work"}


def arguments(*known: str) -> dict[str, str]:
    """Return the ``key=value`` arguments of the command line: the known ones, ``data``, ``keep``.

    ``--json`` is accepted and changes nothing: a benchmark always ends with its JSON document. Nor
    does ``data`` where no data is read: ``make bench`` gives all benchmarks the same arguments.

    Raises
    ------
    SystemExit
        If an argument is not of that form or not known.
    """
    given = [argument for argument in sys.argv[1:] if argument != "--json"]
    wrong = [argument for argument in given if "=" not in argument or argument.startswith("-")]
    if wrong:
        raise SystemExit(f"argument {wrong[0]!r} is not key=value; write it as in data=FOLDER")
    found = dict(argument.split("=", 1) for argument in given)
    taken = (*known, "data", "keep")
    for key in found:
        if key not in taken:
            raise SystemExit(f"there is no argument {key!r}; there are {', '.join(taken)}")
    if found.get("keep", "true") != "true":
        raise SystemExit(f"keep={found['keep']} is not keep=true; leave it out to keep nothing")
    return found


def is_kept(given: Mapping[str, str]) -> bool:
    """Tell whether a run with these arguments takes the place of the result that is kept."""
    return "keep" in given or given.keys() <= _PLACES


def data_file(folder: Path, name: str, file: str) -> Path:
    """Return ``file`` of a data set, from the folder of all data sets or the set's own.

    Raises
    ------
    SystemExit
        If neither holds it.
    """
    inside = folder / name
    path = (inside if inside.is_dir() else folder) / file
    if not path.exists():
        raise SystemExit(f"data={folder} has no {name}/{file}; give its folder")
    return path


def hardware() -> str:
    """Name the processor, the cores that this process may use, and the memory of this machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB memory"


def commit() -> str:
    """Return the checked-out commit, with ``+`` when the working tree differs; else ``unknown``."""
    head = _git("rev-parse", "HEAD")
    return f"{head}{'+' if _git('status', '--porcelain') else ''}" if head else "unknown"


def report(
    name: str,
    figures: Mapping[str, object],
    ratios: Mapping[str, float],
    given: Mapping[str, str],
) -> None:
    """Print the document as the last line, and keep it if a run with such arguments is kept."""
    document = {
        "figures": dict(figures),
        "ratios": dict(ratios),
        "hardware": hardware(),
        "commit": commit(),
    }
    path = RESULTS / f"{name}.json"
    if is_kept(given):
        RESULTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")
    else:
        print(f"{path} is left as it is, for arguments were given: to replace it, add keep=true")
    print(json.dumps(document), flush=True)


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # Linux
    for line in information.read_text().splitlines() if information.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(*command: str) -> str:
    """Return what git answers, or nothing where there is no repository or no git."""
    try:
        answer = subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
