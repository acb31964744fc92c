"""Interactions → what networks are trained on: sequences, positives, negatives."""

from __future__ import annotations

from pipelines.job import Job, Stage
from recs.config import Sequences
from recs.data import sequences


def run_sequences(job: Job) -> None:
    """Write the sequences and positives of users whose interactions have changed."""
    settings = job.config.sequences or Sequences()
    # A user's rows are replaced together, so that the new ones are all that the user has.
    new = job.run.read_new("interactions")
    rows = job.read("interactions") if new is None else new
    made = {
        "sequences": sequences.sequences(rows, _event_type_ids(job, settings), settings),
        "user_positives": sequences.user_positives(rows),
    }
    if new is None:
        job.run.write_all(made)
        return
    changed = new.select("user_id").distinct()
    for table, df in made.items():
        job.run.replace(table, df, gone=changed)


def _event_type_ids(job: Job, settings: Sequences) -> dict[str, int]:
    """Return the numbers of the event types that enter sequences."""
    events = job.config.events
    wanted = settings.event_types or [name for name in events.types if name not in events.shown]
    numbered = {
        row["event_type"]: row["event_type_id"] for row in job.read("event_type_ids").collect()
    }
    missing = sorted(set(wanted) - set(numbered))
    if missing:
        raise ValueError(
            f"event types {missing} have no number in {job.lake.address('event_type_ids')}: "
            "run the stage vocabulary first"
        )
    return {name: numbered[name] for name in wanted}


SEQUENCES = Stage(
    "sequences",
    "Write the last events of users as arrays of one length, and all they wanted.",
    reads=("interactions", "event_type_ids"),
    writes=("sequences", "user_positives"),
    settings=("mode", "events.types", "sequences"),
    work=run_sequences,
)
