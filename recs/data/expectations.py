"""What a delivery is held to, by itself and against those before it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import median

from recs.config import Expect
from recs.errors import UserError

#: Shares below this are nobody's worry, however many times those of before.
_SMALL = 0.01
#: Earlier runs that a share is held against.
_RUNS = 14


class Unexpected(UserError):
    """A delivery is not as ``events.expect`` says."""


def require_rows(expect: Expect, accepted: int) -> None:
    """Refuse a delivery of fewer new events than are expected.

    Raises
    ------
    Unexpected
        With both numbers.
    """
    if expect.min_rows is not None and accepted < expect.min_rows:
        raise Unexpected(
            f"{accepted:,} events are new, events.expect.min_rows is {expect.min_rows:,}: look "
            "after the delivery, or lower it"
        )


def require_fresh(expect: Expect, newest: datetime | None, now: datetime) -> None:
    """Refuse a delivery whose newest event is too old.

    Parameters
    ----------
    newest
        Time of the newest event ever delivered, UTC; None where events have no times.
    now
        UTC.

    Raises
    ------
    Unexpected
        With the time of the newest event; or if events have no times to tell by.
    """
    hours = expect.max_age_hours
    if hours is None:
        return
    if newest is None:
        raise Unexpected("events.expect.max_age_hours needs times, and no event has one")
    if now - newest > timedelta(hours=hours):
        raise Unexpected(
            f"the newest event is of {newest:%Y-%m-%d %H:%M:%S} UTC, more than "
            f"events.expect.max_age_hours = {hours:g} ago: look after the delivery, or raise it"
        )


def require_usual(expect: Expect, what: str, share: float, before: Sequence[float]) -> None:
    """Refuse a share that is many times what it was before.

    Parameters
    ----------
    what
        Of what the share is, for people.
    before
        Shares of the runs before, oldest first; without any, all is usual.

    Raises
    ------
    Unexpected
        With the share and the median of those before.
    """
    if expect.max_times is None or not before:
        return
    usual = median(before[-_RUNS:])
    if share > max(_SMALL, expect.max_times * usual):
        raise Unexpected(
            f"{share:.1%} of the delivery are {what}, {usual:.1%} were so before: look after the "
            f"delivery, or raise events.expect.max_times ({expect.max_times:g})"
        )
