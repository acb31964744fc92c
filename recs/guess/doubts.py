"""What to look at before a guessed configuration is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from recs.config import Events
from recs.guess import names
from recs.guess.columns import Sample, number_of
from recs.guess.roles import Found
from recs.guess.times import FIRST

#: What ingest accepts where a configuration says nothing of it.
_ACCEPTED = Events.model_fields


def doubts_of(sample: Sample, found: Mapping[str, Found]) -> list[str]:
    """Return what is doubtful of the roles of columns, a line each."""
    doubts = []
    taken = [one.column for one in found.values()]
    free = [column for column in sample.columns if column not in taken]
    user = found["user"].column
    if names.match(user.name, names.SESSIONS):
        doubts.append("the user is a session: nobody ever comes back")
    if sample.rows >= 20 and len(user.counts) == len(user.filled):
        doubts.append(f"no value of {user.name!r} occurs twice: are these events?")
    time = found.get("timestamp")
    if time and time.form is None:
        doubts.append(f"the values of {time.column.name!r} are no times: mend timestamp_format")
    if time and time.form and time.form.undecided:
        doubts.append(
            f"{time.column.name!r} has no day above 12: mend timestamp_format where days and "
            "months stand the other way round"
        )
    if not time:
        unread = [column.name for column in free if names.match(column.name, names.TIMES)]
        doubts += [f"{name!r} may be a time, but in no format that is known" for name in unread]
    if not time and "position" not in found:
        doubts.append("no column tells which event comes first: the split is random")
    if "event_type" not in found:
        many = [column for column in free if names.is_any(column.name, names.EVENT_TYPES)]
        doubts += [f"{c.name!r} has {len(c.counts):,} values, too many for types" for c in many]
    rejected = _rejected(found, sample)
    rows = sample.rows + sample.bad
    if rejected:
        counted = ", ".join(f"{reason}: {n:,}" for reason, n in sorted(rejected.items()))
        too_many = rejected.total() > _ACCEPTED["max_reject_share"].default * rows
        doubts.append(
            f"{rejected.total():,} of {rows:,} rows would be put in quarantine ({counted})"
            + (", too many for max_reject_share" if too_many else "")
        )
    return doubts


def _rejected(found: Mapping[str, Found], sample: Sample) -> Counter[str]:
    """Return how many rows ingest would reject, by reason."""
    reasons = Counter({"malformed": sample.bad} if sample.bad else {})
    skew = timedelta(hours=_ACCEPTED["allowed_skew_hours"].default)
    latest = datetime.now(UTC).replace(tzinfo=None) + skew
    for n in range(sample.rows):
        for role, one in found.items():
            value = one.column.values[n]
            reason = _reason(role, one, value, latest)
            if reason:
                reasons[reason] += 1
                break
    return reasons


def _reason(role: str, one: Found, value: str | None, latest: datetime) -> str | None:
    """Return why ingest would reject a value in a role; None if it would not."""
    if role in ("user", "item"):
        return f"null_{role}" if value is None else None
    if role == "timestamp" and one.form is not None:
        time = one.form.read(value) if value else None
        if time is None:
            return "bad_time"
        if time < FIRST:
            return "time_before_floor"
        return "future_time" if time > latest else None
    if role == "weight" and value is not None:
        number = number_of(value)
        if number is None:
            return "bad_weight"
        return "negative_weight" if number < 0 else None
    return None
