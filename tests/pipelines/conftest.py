"""Fixtures of a tiny delivery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recs.config import Config
from tests.pipelines.delivery import configurer, make_delivery


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    return make_delivery(tmp_path / "data")


@pytest.fixture
def configured(delivery: Path, tmp_path: Path) -> Callable[..., Config]:
    return configurer(delivery, tmp_path / "lake")
