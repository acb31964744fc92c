"""Where tables live."""

from __future__ import annotations

import pytest

from recs.lake import Location
from recs.storage import StorageError


@pytest.mark.parametrize(
    ("catalog", "events", "ranks"),
    [
        (None, "lake/lake/events", "lake/backtest/ranks/slim"),
        ("recs", "recs.events", "recs.backtest_ranks_slim"),
        ("main.recs", "main.recs.events", "main.recs.backtest_ranks_slim"),
        ("dev-ml.recs", "`dev-ml`.recs.events", "`dev-ml`.recs.backtest_ranks_slim"),
        ("main.my-recs", "main.`my-recs`.events", "main.`my-recs`.backtest_ranks_slim"),
    ],
)
def test_a_table_has_an_address_that_spark_reads(
    catalog: str | None, events: str, ranks: str
) -> None:
    location = Location("lake", catalog)
    assert location.address("events", "backtest") == events
    assert location.address("ranks/slim", "backtest") == ranks


@pytest.mark.parametrize(
    "catalog", ["", "a.b.c", "a.", "-a", "1a", "a b", "a`b", "a;b", "a\n", "ä", "a.b-c\n"]
)
def test_what_is_no_name_of_a_schema_is_refused(catalog: str) -> None:
    with pytest.raises(StorageError, match="is no name: give 'schema' or 'catalog.schema'"):
        Location("lake", catalog)
