"""The items of the vocabulary as a split sees them, and as models fitted on some splits may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

#: The count of each choice of splits that models are fitted on.
_COUNTS = {("train",): "train_events", ("train", "validation"): "known_events"}


def catalogue(interactions: DataFrame, item_ids: DataFrame) -> DataFrame:
    """Return table ``catalogue`` but ``run_id``: a row for each item of the vocabulary.

    Returns
    -------
    DataFrame
        item_id int, train_events bigint and known_events bigint: positive interactions of split
        ``train``, and of ``train`` and ``validation``.
    """
    counts = (
        interactions.where("positive")
        .groupBy("item_id")
        .agg(
            *(
                F.count_if(F.col("split").isin(*splits)).alias(name)
                for splits, name in _COUNTS.items()
            )
        )
    )
    joined = item_ids.select("item_id").join(counts, "item_id", "left")
    return joined.fillna(0)


def as_fitted(
    catalogue: DataFrame, fit_splits: Sequence[str], recommendable: Literal["train", "all"]
) -> DataFrame:
    """Return the catalogue as models see it that are fitted on ``fit_splits``.

    Parameters
    ----------
    catalogue
        The table.
    fit_splits
        ``train``, or ``train`` and ``validation``.
    recommendable
        ``train``: items with a positive interaction in these splits; ``all``: every item.

    Returns
    -------
    DataFrame
        item_id int, train_events bigint (positive interactions of ``fit_splits``, all of which are
        training to a model fitted on them), recommendable boolean.

    Raises
    ------
    ValueError
        If the splits are others.
    """
    count = _COUNTS.get(tuple(fit_splits))
    if count is None:
        choices = " or ".join(" and ".join(splits) for splits in _COUNTS)
        raise ValueError(f"the catalogue counts events of {choices}, not of {list(fit_splits)}")
    events = F.col(count)
    may = F.lit(True) if recommendable == "all" else events > 0
    return catalogue.select("item_id", events.alias("train_events"), may.alias("recommendable"))
