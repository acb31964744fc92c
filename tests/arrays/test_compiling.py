"""Kernels give what they give, and are compiled once for each types of arguments."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from recs.arrays.compiling import call_compiled


def test_a_kernel_is_compiled_once_for_its_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    @njit
    def total(values, factor):
        return values.sum() * factor

    floats = np.arange(4.0)
    assert call_compiled(total, floats, 2) == call_compiled(total, floats[:3], 4) == 12
    assert len(total.signatures) == 1
    assert call_compiled(total, floats.astype(np.int64), 2) == 12
    assert len(total.signatures) == 2
