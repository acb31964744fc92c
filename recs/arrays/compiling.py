"""Numba kernels, compiled once a host instead of by each of its Python workers at the same time."""

from __future__ import annotations

import fcntl
import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import typeof

from recs.arrays.matrix import host_cache


def compiled_once(*written: str) -> Callable[[Any], Any]:
    """Have one process of a host compile a kernel that Python calls, if any has to.

    Goes over ``njit(cache=True)``; such a kernel is no longer called from other kernels. It is
    compiled for the types of its arguments, which takes seconds, and is kept on disk. Workers that
    start together would all find nothing there and compile the same: here one does, and the others
    wait and load what it has made.

    Arrays are handed on contiguous and read-only, so that they are of few types; those within
    tuples are handed on as they are.

    Parameters
    ----------
    written
        Names of parameters that the kernel writes to, which are handed on as they are too.
    """

    def decorate(kernel: Any) -> Any:
        names = list(inspect.signature(kernel.py_func).parameters)
        outputs = {names.index(name) for name in written}

        @functools.wraps(kernel.py_func)
        def call(*given: Any) -> Any:
            args = [arg if n in outputs else read_only(arg) for n, arg in enumerate(given)]
            types = tuple(typeof(arg) for arg in args)
            if types not in kernel.overloads:
                with open(host_cache() / "compiling.lock", "w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    kernel.compile(types)
            return kernel(*args)

        return call

    return decorate


def read_only(arg: Any) -> Any:
    """Return an array as one that is contiguous and read-only; another argument as it is."""
    if not isinstance(arg, np.ndarray):
        return arg
    array = np.ascontiguousarray(arg).view()
    array.flags.writeable = False
    return array
