"""How much of a log's item sequences is order, as a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from typing import Any

from pipelines.job import Job, Stage
from recs.config import Config, ConfigError
from recs.evaluation.sequentiality import Loss, losses
from recs.lake import Lake
from recs.runs import Ledger
from recs.schema import TABLES
from recs.storage import join


def run_sequentiality(job: Job) -> None:
    """Count the frequent rules of the whole log (all splits) and of its shuffled histories."""
    settings = job.config.sequentiality
    found = losses(
        job.read("interactions"),
        min_count=settings.min_count,
        min_confidence=settings.min_confidence,
        shuffles=settings.shuffles,
        seed=job.config.seed,
    )
    columns = [column for column in TABLES["sequentiality"].columns if column.name != "run_id"]
    schema = ", ".join(f"{column.name} {column.type}" for column in columns)
    rows = [[getattr(loss, column.name) for column in columns] for loss in found]
    job.write("sequentiality", job.spark.createDataFrame(rows, schema))


def read_losses(lake: Lake) -> list[Loss]:
    """Return the newest committed losses, by items and shuffle."""
    version = Ledger(lake).versions()[lake.key("sequentiality")]
    rows = lake.load("sequentiality", version).drop("run_id").orderBy("items", "shuffle")
    return [Loss(**row.asDict()) for row in rows.collect()]


def summary(found: Sequence[Loss]) -> list[dict[str, Any]]:
    """Return a row for each length of rules: means over the shuffles, and shares of the rules.

    ``change`` is shuffled_rules / rules − 1, ``lost_share`` lost / rules; None without rules.
    """
    rows = []
    for items, of_length in groupby(found, attrgetter("items")):
        each = [asdict(loss) for loss in of_length]
        mean = {
            name: sum(loss[name] for loss in each) / len(each)
            for name in ("rules", "shuffled_rules", "lost")
        }
        rules = int(mean["rules"])
        rows.append(
            {
                "items": items,
                **mean,
                "rules": rules,
                "change": round(mean["shuffled_rules"] / rules - 1, 4) if rules else None,
                "lost_share": round(mean["lost"] / rules, 4) if rules else None,
            }
        )
    return rows


def draw(config: Config, found: Sequence[Loss]) -> str:
    """Write the plot under the lake's root and return its path.

    Raises
    ------
    ConfigError
        If matplotlib is missing.
    """
    from recs.report.plots import plot_sequentiality, save

    path = join(config.root, "_reports", f"sequentiality-{config.name}.png")
    try:
        save(plot_sequentiality(found, config.name), path)
    except ModuleNotFoundError as error:
        raise ConfigError(f"the plot needs {error.name}: pip install 'recs[report]'") from error
    return path


SEQUENTIALITY = Stage(
    "sequentiality",
    "Count frequent item sequences, and those lost when histories are shuffled.",
    reads=("interactions",),
    writes=("sequentiality",),
    settings=("mode", "seed", "split", "sequentiality"),
    work=run_sequentiality,
)
