"""Interactions → what networks are trained on: sequences, positives, negatives."""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import DataFrame

from pipelines.inputs import read_catalogue
from pipelines.job import Job, Stage
from recs.config import Negatives, Sequences
from recs.data import negatives, sequences
from recs.lake import LakeError
from recs.storage import join


def run_sequences(job: Job) -> None:
    """Write the sequences of users whose interactions have changed."""
    settings = job.config.sequences or Sequences()
    numbers = _event_type_ids(job, settings)
    _extend(job, "sequences", lambda rows: sequences.sequences(rows, numbers, settings))


def run_positives(job: Job) -> None:
    """Write all positives of users whose interactions have changed."""
    _extend(job, "user_positives", sequences.user_positives)


def run_negatives(job: Job) -> None:
    """Draw the negatives of all positive events that models are fitted on."""
    settings = job.config.negatives or Negatives()
    job.run.require_one_generation("interactions", "user_positives")
    items = None
    if settings.rules and job.run.has("items"):
        items = job.read("items").join(job.read("item_ids").select("item", "item_id"), "item")
    drawn = negatives.negatives(
        job.read("interactions"),
        job.read("user_positives"),
        read_catalogue(job),
        items,
        settings,
        fit_splits=job.fit_splits,
        folder=join(job.work_folder, "negatives"),
        num_items=job.num_items(),
        seed=job.config.seed,
    )
    job.write("negatives", drawn)


def _extend(job: Job, table: str, make: Callable[[DataFrame], DataFrame]) -> None:
    """Make a table of interactions, of which each user's rows are made of the user's own alone."""
    if job.run.unchanged("interactions"):
        job.keep(table)
        return
    # A user's interactions are replaced together, so that the new ones are all that the user has.
    new = job.run.read_new("interactions")
    if new is None:
        job.write(table, make(job.read("interactions")))
    else:
        job.run.replace(table, make(new), gone=new.select("user_id").distinct())


def _event_type_ids(job: Job, settings: Sequences) -> dict[str, int]:
    """Return the numbers of the event types that enter sequences."""
    events = job.config.events
    wanted = settings.event_types or [name for name in events.types if name not in events.shown]
    numbered = {
        row["event_type"]: row["event_type_id"] for row in job.read("event_type_ids").collect()
    }
    missing = sorted(set(wanted) - set(numbered))
    if missing:
        raise LakeError(
            f"event types {missing} have no number in {job.lake.address('event_type_ids')}: "
            "run the stage vocabulary first"
        )
    return {name: numbered[name] for name in wanted}


SEQUENCES = Stage(
    "sequences",
    "Write the last events of users as arrays.",
    reads=("interactions", "event_type_ids"),
    writes=("sequences",),
    settings=("mode", "events.types", "sequences"),
    work=run_sequences,
)
POSITIVES = Stage(
    "positives",
    "Write all items that each user has wanted.",
    reads=("interactions",),
    writes=("user_positives",),
    settings=("mode",),
    work=run_positives,
)
NEGATIVES = Stage(
    "negatives",
    "Draw the negatives of every positive event.",
    reads=("interactions", "user_positives", "catalogue", "items", "item_ids"),
    writes=("negatives",),
    settings=("mode", "seed", "split.recommendable", "evaluate", "negatives"),
    work=run_negatives,
)
