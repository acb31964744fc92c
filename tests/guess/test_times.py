"""Formats of times that are guessed, and that ingest reads them alike."""

from __future__ import annotations

from datetime import datetime

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from recs.config import EventSource
from recs.data import ingest
from recs.guess.times import time_format

#: Format → texts and what they mean.
FORMATS = {
    "seconds": [
        ("881250949", datetime(1997, 12, 4, 15, 55, 49)),
        ("1593878903.438", datetime(2020, 7, 4, 16, 8, 23, 438000)),
    ],
    "milliseconds": [("1433221332117", datetime(2015, 6, 2, 5, 2, 12, 117000))],
    "microseconds": [("1433221332117001", datetime(2015, 6, 2, 5, 2, 12, 117001))],
    "nanoseconds": [("1433221332000000000", datetime(2015, 6, 2, 5, 2, 12))],
    "iso": [
        ("2024-01-31", datetime(2024, 1, 31)),
        ("2024-1-3", datetime(2024, 1, 3)),
        ("2024-01-31T23:59:58Z", datetime(2024, 1, 31, 23, 59, 58)),
        ("2019-10-01 00:00:01 UTC", datetime(2019, 10, 1, 0, 0, 1)),
        ("2024-01-31 7:05", datetime(2024, 1, 31, 7, 5)),
        ("2014-04-07T10:51:09.277Z", datetime(2014, 4, 7, 10, 51, 9)),
    ],
    "yyyyMMdd": [("20240131", datetime(2024, 1, 31))],
    "yyyyMMddHHmmss": [("20240131235958", datetime(2024, 1, 31, 23, 59, 58))],
    "dd/MM/yyyy HH:mm:ss": [("31/01/2024 08:05:09", datetime(2024, 1, 31, 8, 5, 9))],
    "M/d/yyyy H:mm": [
        ("12/1/2010 8:26", datetime(2010, 12, 1, 8, 26)),
        ("1/31/2011 18:05", datetime(2011, 1, 31, 18, 5)),
    ],
    "dd.MM.yyyy": [("31.01.2024", datetime(2024, 1, 31))],
    "dd/MM/yy": [("31/01/24", datetime(2024, 1, 31))],
    "yyyy/MM/dd HH:mm:ss.SSS": [("2024/01/31 08:05:09.000", datetime(2024, 1, 31, 8, 5, 9))],
    "MM/dd/yyyy hh:mm:ss a": [
        ("01/02/2024 12:05:09 AM", datetime(2024, 1, 2, 0, 5, 9)),
        ("01/02/2024 01:05:09 PM", datetime(2024, 1, 2, 13, 5, 9)),
    ],
    "dd-MMM-yyyy": [("01-Jan-1995", datetime(1995, 1, 1))],
    "MMMM d, yyyy": [
        ("January 3, 2024", datetime(2024, 1, 3)),
        ("October 31, 2024", datetime(2024, 10, 31)),
    ],
    "MM d, yyyy": [
        ("09 1, 2016", datetime(2016, 9, 1)),
        ("11 30, 2016", datetime(2016, 11, 30)),
    ],
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_of_times_is_found(name: str) -> None:
    texts, times = zip(*FORMATS[name], strict=True)
    form = time_format(texts)
    assert form is not None and form.name == name
    assert [time.replace(microsecond=0) for time in form.times(texts)] == [
        time.replace(microsecond=0) for time in times
    ]


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["1", "2", "300"],
        ["12:30:01", "12:30:02"],
        ["PM", "8 PM"],
        ["192.168.10.1", "192.168.10.2"],
        ["Toy Story (1995)", "Heat (1995)"],
        ["2024-01-31", "view", "cart"],
        ["31/31/2024"],
        ["0001-01-01", "1900-01-01"],
    ],
)
def test_other_values_are_no_times(texts: list[str]) -> None:
    assert time_format(texts) is None


@pytest.mark.parametrize(
    ("texts", "name", "undecided"),
    [
        (["01/02/2024", "13/02/2024"], "dd/MM/yyyy", False),
        (["01/02/2024", "01/13/2024"], "MM/dd/yyyy", False),
        (["01/02/2024", "03/04/2024"], "dd/MM/yyyy", True),
    ],
)
def test_days_are_told_from_months_by_what_is_above_12(
    texts: list[str], name: str, undecided: bool
) -> None:
    form = time_format(texts)
    assert form is not None and (form.name, form.undecided) == (name, undecided)


def test_a_few_missing_times_do_not_hide_the_format() -> None:
    form = time_format(["0"] + ["1433221332"] * 19)
    assert form is not None and form.name == "seconds"
    assert len(form.times(["0", "1433221332"])) == 1


def test_ingest_reads_what_is_guessed(spark: SparkSession) -> None:
    for name, pairs in FORMATS.items():
        source = EventSource.model_validate(
            {
                "path": "e",
                "columns": {"user": "u", "item": "i", "timestamp": "t"},
                "timestamp_format": name,
            }
        )
        texts = spark.createDataFrame([(text,) for text, _ in pairs], "t string")
        read = texts.select(
            F.date_format(ingest._time(F.col("t"), source), "yyyy-MM-dd HH:mm:ss").alias("t")
        )
        expected = [f"{time:%Y-%m-%d %H:%M:%S}" for _, time in pairs]
        assert [row["t"] for row in read.collect()] == expected, name
