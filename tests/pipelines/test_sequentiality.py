"""``recs sequentiality``: from raw files to its table, plot and document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.cli import main
from pipelines.sequentiality import summary
from recs.evaluation.sequentiality import Loss


def test_rules_are_counted_from_raw_files(
    spark: SparkSession, delivery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"data={delivery}", f"root={tmp_path}/lake", "name=shop"]
    given += ["sequentiality.shuffles=2", "sequentiality.min_count=2"]
    assert main(["sequentiality", "--config", str(delivery / "tiny.yaml"), *given, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    two, three = document["sequentiality"]
    assert (two["items"], three["items"]) == (2, 3)
    assert two["rules"] > 5  # users go through ten items in steps of one, two or three
    assert two["change"] == round(two["shuffled_rules"] / two["rules"] - 1, 4)
    assert three["lost_share"] > 0.5
    assert document["tables"]["sequentiality"]["version"] >= 1
    assert document["plot"] == f"{tmp_path}/lake/_reports/sequentiality-shop.png"
    assert Path(document["plot"]).stat().st_size > 5_000


def test_summary_is_the_mean_of_the_shuffles() -> None:
    rows = summary([Loss(2, 0, 10, 5, 6), Loss(2, 1, 10, 8, 4), Loss(3, 0, 0, 1, 0)])
    assert rows[0] == {
        "items": 2,
        "rules": 10,
        "shuffled_rules": 6.5,
        "lost": 5.0,
        "change": -0.35,
        "lost_share": 0.5,
    }
    assert (rows[1]["change"], rows[1]["lost_share"]) == (None, None)
