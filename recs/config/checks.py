"""Checks that read several sections together."""

from __future__ import annotations

from datetime import datetime

from recs.config.evaluation import Evaluate
from recs.config.preparation import Export, Negatives, Sequences
from recs.config.sources import CandidateSource, Events


def check_hold_out(export: Export, evaluate: Evaluate, sequences: Sequences | None) -> None:
    """Refuse settings that need events which ``export.hold_out: false`` trains on."""
    if export.hold_out:
        return
    if evaluate.split == "validation":
        raise ValueError(
            "export.hold_out: false trains on the events that evaluate.split: validation "
            "ranks: change one of them"
        )
    if sequences and (sequences.stride or sequences.session_gap_minutes):
        raise ValueError(
            "export.hold_out: false trains on the newest events of each user: leave out "
            "sequences.stride and sequences.session_gap_minutes"
        )


def check_candidates(evaluate: Evaluate, candidates: list[CandidateSource]) -> None:
    """Refuse to measure among given candidates where there are none."""
    if "given" in evaluate.protocols and not candidates:
        raise ValueError(
            "evaluate.protocols names 'given', but there are no candidates: give their source, "
            "or leave it out"
        )


def check_as_of(as_of: datetime | None, events: Events) -> None:
    """Refuse a past day of events that have no times."""
    if as_of is not None and any(source.columns.timestamp is None for source in events.sources):
        raise ValueError("as_of needs times, and a source has columns.timestamp: null: give none")


def check_event_types(
    events: Events, sequences: Sequences | None, negatives: Negatives | None
) -> None:
    """Refuse names of event types that ``events.types`` does not list."""
    named = {
        "sequences.event_types": (sequences and sequences.event_types) or [],
        "negatives.explicit": negatives.explicit if negatives else [],
    }
    for key, types in named.items():
        unknown = [name for name in types if name not in events.types]
        if unknown:
            raise ValueError(
                f"{key} names {unknown[0]!r}, which is none of events.types {list(events.types)}"
            )
