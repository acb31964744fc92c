"""What a stage runs on and what it takes: versions of software, peak memory of its processes."""

from __future__ import annotations

import contextlib
import platform
import re
import resource
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import recs

_PACKAGES = {"delta": "delta-spark", "torch": "torch", "pyarrow": "pyarrow", "numpy": "numpy"}


def versions(spark: Any) -> dict[str, str]:
    """Return the versions of recs, Python, Spark and the packages that are installed.

    ``commit`` is that of the checkout that recs lies in, where it lies in one.
    """
    found = {"recs": recs.__version__, "python": platform.python_version(), **_installed()}
    if spark is not None:
        found["spark"] = str(spark.version)
    return found


@cache
def _installed() -> dict[str, str]:
    found = {}
    for name, package in _PACKAGES.items():
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(package)
    with contextlib.suppress(OSError, ValueError):
        found["commit"] = _commit(Path(recs.__file__).parents[1] / ".git")
    return found


def _commit(git: Path) -> str:
    """Return the commit that a checkout is at; OSError or ValueError where it is not told."""
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return _hex(head)
    ref = head.removeprefix("ref: ")
    if (git / ref).is_file():
        return _hex((git / ref).read_text().strip())
    packed = (git / "packed-refs").read_text()
    return _hex(next(line.split()[0] for line in packed.splitlines() if line.endswith(f" {ref}")))


def _hex(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40,64}", text):
        raise ValueError(text)
    return text


class Peaks:
    """Peak memory of the driver's processes since :meth:`begin`.

    Where a system cannot forget an earlier peak, it is that since the process began.
    """

    def __init__(self, spark: Any) -> None:
        # Spark Connect has no JVM here.
        self._jvm = getattr(spark, "_jvm", None)

    @classmethod
    def begin(cls, spark: Any) -> Peaks:
        """Forget what was before."""
        peaks = cls(spark)
        with contextlib.suppress(OSError):  # Linux
            Path("/proc/self/clear_refs").write_text("5")
        for pool in peaks._pools():
            with contextlib.suppress(Exception):
                pool.resetPeakUsage()
        return peaks

    def read(self) -> dict[str, int]:
        """Return bytes: ``python``, resident, and ``jvm``, the sum of its heap's pools' peaks."""
        found = {"python": _peak_resident()}
        pools = [pool.getPeakUsage().getUsed() for pool in self._pools()]
        return {**found, "jvm": sum(pools)} if pools else found

    def _pools(self) -> list[Any]:
        if self._jvm is None:
            return []
        try:
            management = self._jvm.java.lang.management
            pools = management.ManagementFactory.getMemoryPoolMXBeans()
            heap = management.MemoryType.HEAP
            return [pool for pool in pools if pool.getType().equals(heap)]
        except Exception:  # as where a platform guards its JVM: no stage fails for a statistic
            return []


def _peak_resident() -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
