"""Lists, and what is measured of models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recs.config.models import NETWORKS, ModelName
from recs.config.values import Different, PositiveInt, Share, one_of
from recs.schema import METRICS_OF_LISTS, METRICS_OF_RANKS, METRICS_WITHOUT_K
from recs.settings import Strict

MetricName = Annotated[
    str, one_of((*METRICS_OF_RANKS, *METRICS_OF_LISTS, *METRICS_WITHOUT_K), "metric")
]
ProtocolName = Literal["full", "uniform100", "popularity100", "given", "relevance"]


class Recommend(Strict):
    """The lists.

    Attributes
    ----------
    k
        Items of a list.
    exclude_seen
        Whether items are left out that the user has had.
    why
        Most items of the history that are told as reasons; networks tell none.
    """

    k: PositiveInt = 20
    exclude_seen: bool = True
    why: Annotated[int, Field(ge=0)] = 3


class Gate(Strict):
    """A metric that must not fall below a value; a backtest that misses it fails, and says so.

    ``k`` is null for ``auc`` and ``accuracy``, and may be for metrics of whole rankings. Metrics of
    lists are of protocol ``full``, ``accuracy`` of ``relevance``.
    """

    model: ModelName
    metric: MetricName
    at_least: Annotated[float, Field(allow_inf_nan=False)]
    k: PositiveInt | None = 10
    protocol: ProtocolName = "full"

    @model_validator(mode="after")
    def _is_ever_measured(self) -> Gate:
        if self.metric in METRICS_WITHOUT_K and self.k is not None:
            raise ValueError(f"{self.metric} is not measured at a length: give k: null")
        if self.metric in METRICS_OF_LISTS and self.k is None:
            raise ValueError(f"{self.metric} is measured at a length: give k")
        of_relevance = self.protocol == "relevance"
        if of_relevance and self.metric not in METRICS_WITHOUT_K:
            raise ValueError(f"relevance measures {', '.join(METRICS_WITHOUT_K)} alone")
        if self.metric == "accuracy" and not of_relevance:
            raise ValueError("accuracy is measured of relevance alone: give protocol: relevance")
        if self.metric == "accuracy" and self.model not in NETWORKS:
            raise ValueError("accuracy is measured of networks alone, whose scores are logits")
        if self.metric in METRICS_OF_LISTS and self.protocol != "full":
            raise ValueError(f"{self.metric} is of lists: leave out protocol")
        return self

    @property
    def label(self) -> str:
        """The metric as people write it."""
        at = "" if self.k is None else f"@{self.k}"
        return f"{self.metric}{at} of {self.model} ({self.protocol})"


class Evaluate(Strict):
    """What is measured, over the ``ks`` first items of lists.

    ``split: test`` fits on training and validation events and ranks the test targets;
    ``validation`` fits on training events alone. Protocol ``relevance`` asks of single items
    whether the user likes them; at least one other is given, by which targets are ranked.
    ``baseline`` is the model that ``metric_differences`` compares the others with, where it is
    among ``models``. ``ties: against`` puts candidates of the target's score before it, ``random``
    gives the expectation over all their orders.
    """

    split: Literal["validation", "test"] = "test"
    protocols: Annotated[list[ProtocolName], Different] = ["full"]
    ks: Annotated[list[PositiveInt], Different] = Field(default=[1, 5, 10, 20], min_length=1)
    ties: Literal["against", "random"] = "against"
    bootstrap: PositiveInt = 200
    baseline: ModelName = "popularity"
    gates: list[Gate] = []

    @field_validator("protocols")
    @classmethod
    def _something_is_ranked(cls, value: list[str]) -> list[str]:
        if not set(value) - {"relevance"}:
            raise ValueError("name a protocol that ranks too, as in [full, relevance]")
        return value


class Sequentiality(Strict):
    """How the rules of a log are counted, and how often its histories are shuffled.

    Attributes
    ----------
    min_count
        Times that two or three items must follow each other to be a rule.
    min_confidence
        Share of the times that a rule's first item (or two) occurs in which its last one follows.
    shuffles
        Seeded shuffles that are averaged.
    k
        Length of the lists that trained networks make of histories as they are and shuffled.
    """

    min_count: PositiveInt = 5
    min_confidence: Share = 0.1
    shuffles: PositiveInt = 5
    k: PositiveInt = 10
