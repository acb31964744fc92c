"""Stages in any order, with deliveries between them, end as one delivery, or are refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipelines.run import open_lake, run_stages, stages_named
from recs import readers
from recs.config import Config
from recs.lake import Lake, LakeError
from recs.ledger import Ledger
from tests.pipelines.delivery import configurer, deliver, make_delivery

# A delivery has a row that is no event.
GIVEN = (
    "models=popularity",
    "sequences.length=4",
    "negatives.per_positive=2",
    "events.max_reject_share=.05",
)
IN_ORDER = ("ingest", "vocabulary", "split", "sequences", "positives", "negatives")
TABLES = (
    *("events", "user_ids", "item_ids", "interactions", "catalogue"),
    *("sequences", "user_positives", "negatives"),
)
DAYS = {2: range(26, 34), 3: range(30, 38), 4: range(2, 40, 3)}


class Warehouse:
    """A lake and its delivery; each stage ``ingest`` but the first brings a day while there are."""

    def __init__(self, folder: Path, *given: str) -> None:
        self.folder = make_delivery(folder / "data")
        self.config: Config = configurer(self.folder, folder / "lake")(*GIVEN, *given)
        self.lake: Lake = open_lake(self.config)
        self.days = iter(DAYS.items())
        self.ingested = False

    def run(self, *stages: str) -> None:
        for stage in stages:
            day = next(self.days, None) if stage == "ingest" and self.ingested else None
            if day is not None:
                deliver(self.folder, *day)
            self.ingested |= stage == "ingest"
            run_stages(stages_named(self.config, stage), self.config, self.lake)

    def refused(self, *stages: str) -> dict[str, str]:
        """Run stages, and return what each that was refused has said."""
        told = {}
        for stage in stages:
            try:
                self.run(stage)
            except LakeError as error:
                told[stage] = str(error)
        return told

    def end(self) -> dict[str, list[str]]:
        """Bring the days that are left, run all stages in order, and return what is committed."""
        for day in self.days:
            deliver(self.folder, *day)
        self.run(*IN_ORDER)
        versions = Ledger(self.lake).versions()
        found = {name: self.lake.load(name, versions[self.lake.key(name)]) for name in TABLES}
        # Files are numbered in the order of their deliveries.
        found = {name: df.drop("run_id", "source") for name, df in found.items()}
        return {name: sorted(map(str, df.collect())) for name, df in found.items()}


@pytest.fixture(scope="module")
def at_once(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return Warehouse(tmp_path_factory.mktemp("at_once")).end()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("order", "refused"),
    [
        # Hourly deliveries beside a nightly run.
        (
            "ingest vocabulary ingest split sequences positives ingest negatives "
            "vocabulary sequences split ingest sequences positives negatives",
            {},
        ),
        # What is made of interactions, before what the next needs of them is made.
        (
            "split ingest vocabulary split positives negatives sequences ingest split vocabulary "
            "negatives split export negatives sequences export",
            {
                "split": "run the stage vocabulary first",
                "negatives": "user_positives of others: run the stage positives",
                "export": "user_positives of others: run the stage positives",
            },
        ),
    ],
)
def test_any_order_ends_as_one_delivery_or_is_refused(
    at_once: dict[str, list[str]], tmp_path: Path, order: str, refused: dict[str, str]
) -> None:
    warehouse = Warehouse(tmp_path)
    told = warehouse.refused(*order.split())
    assert told.keys() == refused.keys()
    for stage, message in refused.items():
        assert message in told[stage]
    assert warehouse.end() == at_once


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_orders_by_chance_end_as_one_delivery_or_are_refused(
    at_once: dict[str, list[str]], tmp_path: Path, seed: int
) -> None:
    order = [*IN_ORDER, "export", *IN_ORDER, "export", "ingest"]
    random.Random(seed).shuffle(order)
    warehouse = Warehouse(tmp_path)
    warehouse.refused(*order)
    assert warehouse.end() == at_once


def test_stages_without_anything_new_commit_no_table(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    stages = ("ingest", "vocabulary", "split", "sequences", "positives")
    warehouse.run(*stages)
    before = Ledger(warehouse.lake).versions()
    run_stages(stages_named(warehouse.config, *stages), warehouse.config, warehouse.lake)
    assert Ledger(warehouse.lake).versions() == before


@pytest.mark.slow
def test_a_backtest_measures_models_and_lists_of_the_interactions_it_reads(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path)
    fit_and_list = ("fit", "recommend", "rank")
    warehouse.run("ingest", "vocabulary", "split", *fit_and_list)
    warehouse.run("ingest", "vocabulary", "split")
    told = warehouse.refused("recommend", "rank")
    assert "run the stage fit/popularity" in told["recommend"]
    assert "run the stages fit/popularity, recommend/popularity" in told["rank"]
    warehouse.run(*fit_and_list)


@pytest.mark.slow
def test_what_serves_may_be_fitted_on_earlier_days(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path, "mode=serve")
    warehouse.run("ingest", "vocabulary", "split", "fit", "recommend")
    warehouse.run("ingest", "vocabulary", "split", "recommend")
    lists = readers.read(warehouse.lake, "recommendations")
    assert "user33" in {row["user"] for row in lists.select("user").distinct().collect()}
