"""How events become what models are fitted on: the split, sequences, negatives, training sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recs.config.values import Moment, NonNegative, PositiveInt
from recs.settings import Strict


class Split(Strict):
    """How events become training, validation and test.

    Attributes
    ----------
    method
        ``leave_one_out``: a user's last positive event is the test, the one before the validation;
        ``global_time``: events from ``validation_from`` and ``test_from`` on;
        ``random``: ``held_out_per_user`` seeded random positives a user and split, for data without
        order; ``files``: as the event sources say by ``held_out``, with ``held_out_per_user``
        seeded random training positives as validation where no file gives one.
    min_user_events, min_item_events
        The k-core: users and items with fewer positive events are left out, until none is left.
    max_user_events
        Users with more events than this (bots): ``latest`` keeps their last so many, ``drop``
        leaves the users out. The events themselves stay in ``events``.
    repeats
        ``keep`` every event, or ``merge`` a user's events of an item into the last of them, with
        the sum of their weights.
    recommendable
        Items that may be recommended, and from which negatives are drawn: ``train`` (those with a
        positive training event) or ``all``.
    """

    method: Literal["leave_one_out", "global_time", "random", "files"] = "leave_one_out"
    validation_from: Moment | None = None
    test_from: Moment | None = None
    held_out_per_user: PositiveInt = 1
    min_user_events: PositiveInt = 1
    min_item_events: PositiveInt = 1
    max_user_events: PositiveInt | None = None
    over_cap: Literal["latest", "drop"] = "latest"
    repeats: Literal["keep", "merge"] = "keep"
    recommendable: Literal["train", "all"] = "train"

    @model_validator(mode="after")
    def _times_are_given(self) -> Split:
        if self.method != "global_time":
            return self
        if not (self.validation_from and self.test_from):
            raise ValueError("method global_time needs validation_from and test_from")
        if self.validation_from >= self.test_from:
            raise ValueError(
                f"validation_from {self.validation_from} is not before test_from {self.test_from}: "
                "exchange them"
            )
        return self


class Sequences(Strict):
    """How a user's events become rows of one fixed length, for sequential models.

    Attributes
    ----------
    length
        L: events a row holds; shorter ones are padded on the left.
    session_gap_minutes
        A row never crosses a longer pause between two events; None: histories are not cut.
    stride
        None keeps the last ``length`` events of a user (or session). A number adds the windows of
        ``length`` events that end so many events apart, from the first on: training on all of a
        long history.
    event_types
        Types that enter; None: all but those of polarity ``shown``.
    """

    length: PositiveInt = 50
    session_gap_minutes: Annotated[float, Field(gt=0)] | None = None
    stride: PositiveInt | None = None
    event_types: list[str] | None = None


class NegativeRule(Strict):
    """A column of items in which a negative must equal its positive.

    Attributes
    ----------
    column
        ``categories`` (one of them in common is enough), ``title``, or one of ``attributes``.
    edges
        Ascending bounds that make bands of a number, as in a price band.
    """

    column: str
    edges: list[float] | None = None


class Negatives(Strict):
    """Items to stand against each positive event, as a table for models of one's own.

    Networks here draw theirs afresh in every step: see ``networks.NAME.loss.sampler``.

    Attributes
    ----------
    sampler
        ``uniform`` over the recommendable items, or by ``popularity``, their training events to
        the power of ``alpha``.
    per_positive
        m: negatives of a positive event.
    rules
        Columns of items in which a negative equals the positive; all have to hold.
    explicit
        Event types (as dislikes, or impressions that were not taken) whose items come first among
        the user's negatives.
    shortage
        For a user who has too few other items: ``fewer`` negatives, or an ``error``.
    """

    sampler: Literal["uniform", "popularity"] = "uniform"
    alpha: NonNegative = 0.75
    per_positive: PositiveInt = 4
    rules: list[NegativeRule] = []
    explicit: list[str] = []
    shortage: Literal["fewer", "error"] = "fewer"


class Export(Strict):
    """What networks are trained on, as files.

    Attributes
    ----------
    lanes
        Streams that the rows are dealt to; processes share them out, so a multiple of any number
        of processes that will train on it. Batches are of as many rows of each.
    validation_users
        Users on whose validation events training is measured: all, or so many, by hash.
    hold_out
        False trains on validation events too, as SLIM is fitted, for all ``epochs``: the last
        training of a backtest, when validation has chosen their number. Of a user's events the
        newest ``sequences.length`` are read, so not with windows or sessions.
    """

    lanes: PositiveInt = 16
    validation_users: PositiveInt = 20_000
    hold_out: bool = True
