"""What models read, rank and draw from: histories and the catalogue, of the splits fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipelines.job import Job
from recs.config import NETWORKS
from recs.data.catalogue import as_fitted
from recs.data.histories import histories
from recs.ranking.catalogue import ItemCatalogue, write_catalogue
from recs.schema import part
from recs.session import settings
from recs.storage import join

_MAX_BYTES = "spark.sql.execution.arrow.maxBytesPerBatch"

#: Of a batch of rows of whole users, about.
_BATCH_BYTES = 64 * 2**20


def read_histories(job: Job, values: str = "binary", *, held_out: str | None = None) -> DataFrame:
    """Return what models read of each user, of the splits that they are fitted on.

    Parameters
    ----------
    values
        ``binary``, ``weight``, or the name of a network, whose vectors of users are added; a user
        without one has no history to the network.
    held_out
        Split of which the targets are added; see :func:`recs.data.histories.histories`.
    """
    read = histories(
        job.read("interactions"),
        job.fit_splits,
        "weight" if values == "weight" else "binary",
        exclude_seen=job.config.recommend.exclude_seen,
        shown=job.config.events.shown,
        held_out=held_out,
    )
    if values not in NETWORKS:
        return read
    embedded = job.read(part("user_embeddings", values))
    read = read.join(embedded.select("user_id", "vector"), "user_id", "left")
    unread = F.col("vector").isNull()
    return read.withColumns(
        {
            name: F.when(unread, F.array().cast(read.schema[name].dataType)).otherwise(F.col(name))
            for name in ("history", "values")
        }
    )


def read_catalogue(job: Job, fit_splits: Sequence[str] | None = None) -> DataFrame:
    """Return item_id, train_events and recommendable to models fitted on some splits.

    Parameters
    ----------
    fit_splits
        Those of :attr:`pipelines.job.Job.fit_splits` by default.
    """
    splits = fit_splits or job.fit_splits
    return as_fitted(job.read("catalogue"), splits, job.config.split.recommendable)


def open_catalogue(job: Job) -> ItemCatalogue:
    """Return the catalogue in files, as models fitted on the job's splits see it."""
    return write_catalogue(read_catalogue(job), join(job.work_folder, "catalogue"), job.num_items())


def bounded_batches(spark: SparkSession) -> AbstractContextManager[None]:
    """Bound the bytes of the batches in which Python gets rows, in what is run in the block.

    Ended by the number of rows alone, batches of users with their histories and candidates may take
    more than Arrow's 32-bit offsets reach. Other rows are short and go by their number, which is
    faster to tell.
    """
    return settings(spark, {_MAX_BYTES: str(_BATCH_BYTES)})
