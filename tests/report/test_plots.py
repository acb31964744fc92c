"""Plots: they say the numbers, and are written as images."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from recs.evaluation.sequentiality import Loss
from recs.report.plots import plot_sequentiality, save

LOSSES = [Loss(2, 0, 1000, 300, 800), Loss(2, 1, 1000, 400, 700), Loss(3, 0, 0, 0, 0)]


def test_bars_show_what_is_left_of_the_rules() -> None:
    two, three = plot_sequentiality(LOSSES, "shop").axes
    assert two.get_title() == "2 items in a row: -65%"
    assert three.get_title() == "3 items in a row: no rules"
    assert [bar.get_height() for bar in two.patches] == [1000, 250, 100]  # type: ignore[attr-defined]
    assert {text.get_text() for text in two.texts} == {"1,000", "350"}


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_a_plot_is_written_where_it_is_asked_for(tmp_path: Path, name: str, magic: bytes) -> None:
    path = tmp_path / "_reports" / name
    save(plot_sequentiality(LOSSES, "shop"), str(path))
    assert path.read_bytes().startswith(magic)
