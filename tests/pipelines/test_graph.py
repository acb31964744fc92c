"""The order of stages follows from their tables, and so does what comes before and after one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pipelines.graph import in_order, select
from pipelines.run import all_stages, stages_of
from recs.config import Config, ConfigError

Configure = Callable[..., Config]


def labels(config: Config, **asked: object) -> list[str]:
    return [stage.label for stage in select(stages_of(config), **asked)]  # type: ignore[arg-type]


def test_whatever_order_stages_are_given_in_each_follows_what_it_reads(
    configured: Configure,
) -> None:
    stages = all_stages(configured("models=popularity,slim,sasrec"))
    random.Random(0).shuffle(stages)
    written: set[str] = set()
    for stage in in_order(stages):
        others = {table for other in stages if other is not stage for table in other.writes}
        assert set(stage.reads) & others - set(stage.writes) <= written, stage.label
        written |= set(stage.writes)


def test_a_part_of_the_pipeline_is_chosen_by_names_and_ends(configured: Configure) -> None:
    config = configured()
    assert labels(config, names=["recommend", "fit/slim"]) == [
        "fit/slim",
        "recommend/popularity",
        "recommend/slim",
    ]
    assert labels(config, end="fit/slim") == ["ingest", "vocabulary", "split", "fit/slim"]
    assert labels(config, start="fit/slim") == [
        "fit/slim",
        "recommend/slim",
        "rank/slim",
        "compare",
    ]
    assert labels(config, start="split", end="fit/popularity") == ["split", "fit/popularity"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"names": ["fits"]}, "no stage here is called 'fits': they are ingest, vocabulary"),
        ({"start": "train"}, "no stage here is called 'train'"),
        ({"start": "fit/slim", "end": "split"}, "no stage is left"),
    ],
)
def test_stages_that_are_not_there_are_refused(
    configured: Configure, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        labels(configured(), **asked)
