"""What every benchmark needs: its arguments, the hardware, the commit, and one JSON result.

A benchmark is run as ``python benchmarks/NAME.py key=value … [--json]``. Its last line is one JSON
document ``{"figures": {…}, "ratios": {…}, "hardware": …, "commit": …}``, which is also kept in
``benchmarks/results/NAME.json``. Every ratio is theirs / ours in time: above 1, ours is faster.
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


def arguments() -> dict[str, str]:
    """Return the ``key=value`` arguments of the command line.

    ``--json`` is accepted and changes nothing: a benchmark always ends with its JSON document.

    Raises
    ------
    SystemExit
        If an argument is not of that form.
    """
    given = [argument for argument in sys.argv[1:] if argument != "--json"]
    wrong = [argument for argument in given if "=" not in argument or argument.startswith("-")]
    if wrong:
        raise SystemExit(f"argument {wrong[0]!r} is not key=value; write it as in data=FOLDER")
    return dict(argument.split("=", 1) for argument in given)


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
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB memory"


def commit() -> str:
    """Return the checked-out commit, with ``+`` when the working tree differs; else ``unknown``."""
    head = _git("rev-parse", "HEAD")
    return f"{head}{'+' if _git('status', '--porcelain') else ''}" if head else "unknown"


def report(name: str, figures: Mapping[str, object], ratios: Mapping[str, float]) -> None:
    """Write ``benchmarks/results/{name}.json`` and print the same document as the last line."""
    document = {
        "figures": dict(figures),
        "ratios": dict(ratios),
        "hardware": hardware(),
        "commit": commit(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document), flush=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _git(*command: str) -> str:
    """Return what git answers, or nothing where there is no repository or no git."""
    try:
        answer = subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
