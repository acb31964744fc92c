"""Counts of items by split, and what may be recommended by models fitted on some of them."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession

from recs.data.catalogue import as_fitted, catalogue


def test_items_are_counted_by_what_models_are_fitted_on(
    spark: SparkSession, labelled: DataFrame
) -> None:
    item_ids = spark.createDataFrame([(item,) for item in (2, 3, 5, 7, 9, 11)], "item_id int")
    table = catalogue(labelled, item_ids)
    counts = {row.item_id: (row.train_events, row.known_events) for row in table.collect()}
    assert counts == {2: (1, 1), 3: (0, 1), 5: (2, 2), 7: (0, 0), 9: (0, 0), 11: (0, 0)}

    def seen(fit_splits: tuple[str, ...], recommendable: str) -> dict[int, tuple[int, bool]]:
        rows = as_fitted(table, fit_splits, recommendable).collect()  # type: ignore[arg-type]
        return {row.item_id: (row.train_events, row.recommendable) for row in rows}

    assert seen(("train",), "train")[3] == (0, False)
    assert seen(("train", "validation"), "train")[3] == (1, True)
    assert seen(("train",), "train")[5] == (2, True)
    assert seen(("train",), "all")[11] == (0, True)
    with pytest.raises(ValueError, match="of train or train and validation, not of .'test'."):
        as_fitted(table, ("test",), "all")
