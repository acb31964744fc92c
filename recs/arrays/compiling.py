"""Numba kernels, compiled once a host instead of by each of its Python workers at the same time."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from typing import Any

from numba import typeof

from recs.arrays.matrix import host_cache


def call_compiled(kernel: Callable[..., Any], *args: Any) -> Any:
    """Call a kernel of ``njit(cache=True)``; of a host's processes one compiles it, if any has to.

    A kernel is compiled for the types of its arguments, which takes seconds, and is kept on disk.
    Workers that start together would all find nothing there and compile the same: here one does,
    and the others wait and load what it has made.
    """
    types = tuple(typeof(arg) for arg in args)
    if types not in kernel.overloads:  # type: ignore[attr-defined]
        with open(host_cache() / "compiling.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kernel.compile(types)  # type: ignore[attr-defined]
    return kernel(*args)
