"""``recs tune MODEL`` of networks: what is told before Spark starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.run import stages_named
from recs.config import Config

TUNE = "networks.sasrec.tune={trials: 4, space: {model.dim: [8, 16]}}"


@pytest.mark.parametrize(
    "given, message",
    [
        ("networks.sasrec.tune=null", "networks.sasrec.tune declares no space: give one"),
        ("mode=serve", "search with mode=backtest"),
        ("networks.sasrec.tune.spaces={}", "'networks.sasrec.tune.spaces'; the nearest"),
        ("networks.sasrec.tune.trials=0", "networks.sasrec.tune.trials"),
        (
            "networks.sasrec.tune.space.model.dropout={low: 0.5, high: 0.1}",
            "key 'networks.sasrec.tune.space.model.dropout.range': low 0.5 is not below high 0.1",
        ),
        (
            "networks.sasrec.tune.space.model.dims=[8]",
            "key 'networks.sasrec.tune.space': sasrec has no setting 'dims'; did you mean 'dim'?",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    delivery: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: str,
    message: str,
) -> None:
    lake = tmp_path / "lake"
    file = ["--config", str(delivery / "tiny.yaml"), f"data={delivery}", f"root={lake}"]
    assert main(["tune", "sasrec", *file, TUNE, given]) == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1
    assert not lake.exists()


def test_what_is_trained_does_not_depend_on_what_is_searched(
    configured: Callable[..., Config],
) -> None:
    plain = configured("models=sasrec")
    (stage,) = stages_named(plain, "train")
    tuned = configured("models=sasrec", TUNE)
    other = configured("models=sasrec", TUNE, "networks.sasrec.training.epochs=2")
    assert plain.hash(*stage.settings) == tuned.hash(*stage.settings)
    assert other.hash(*stage.settings) != tuned.hash(*stage.settings)
