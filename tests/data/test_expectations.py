"""What a delivery is held to, by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from recs.config import Expect
from recs.data.expectations import Unexpected, require_fresh, require_rows, require_usual

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


def test_few_rows_are_refused() -> None:
    require_rows(Expect(), 0)
    require_rows(Expect(min_rows=10), 10)
    with pytest.raises(Unexpected, match=r"9 events are new, events.expect.min_rows is 10"):
        require_rows(Expect(min_rows=10), 9)


def test_old_events_are_refused() -> None:
    newest = datetime(2026, 1, 1, 12, tzinfo=UTC)
    require_fresh(Expect(), None, NOW)
    require_fresh(Expect(max_age_hours=24), newest, NOW)
    with pytest.raises(Unexpected, match="is of 2026-01-01 12:00:00 UTC, more than .* = 23 ago"):
        require_fresh(Expect(max_age_hours=23), newest, NOW)
    with pytest.raises(Unexpected, match="no event has one"):
        require_fresh(Expect(max_age_hours=23), None, NOW)


@pytest.mark.parametrize(
    ("share", "before", "is_usual"),
    [
        (0.9, [], True),  # of the first delivery nothing is known
        (0.06, [0.02, 0.9, 0.02], True),
        (0.07, [0.02, 0.9, 0.02], False),
        (0.01, [0.0], True),
        (0.011, [0.0], False),
        (0.5, [0.9] * 3 + [0.1] * 14, False),  # the last 14 count
    ],
)
def test_a_share_many_times_the_usual_is_refused(
    share: float, before: list[float], is_usual: bool
) -> None:
    require_usual(Expect(), "rejected", share, before)
    if is_usual:
        require_usual(Expect(max_times=3), "rejected", share, before)
    else:
        with pytest.raises(Unexpected, match="of the delivery are rejected"):
            require_usual(Expect(max_times=3), "rejected", share, before)
