"""Kernels give what they give, and are compiled once for each types of arguments."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from recs.arrays.compiling import compiled_once


def test_a_kernel_is_compiled_once_for_its_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    @njit
    def add(values, factor, out):
        out[0] += values.sum() * factor

    call, out = compiled_once("out")(add), np.zeros(1)
    floats = np.arange(8.0)
    read_only = floats.copy()
    read_only.flags.writeable = False
    for values in (floats, floats[:5], floats[::2], read_only):
        call(values, 2, out)
    assert out[0] == 2 * (28 + 10 + 12 + 28)
    assert len(add.signatures) == 1
    call(floats.astype(np.int64), 2, out)
    assert len(add.signatures) == 2
    assert floats.flags.writeable and out.flags.writeable
