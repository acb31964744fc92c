"""SLIM on catalogues of 10,000 to a million items: seconds an item, memory, objective, warm start.

    python benchmarks/slim_scale.py [items=10000,100000,300000] [neighbours_items=1000000]
        [max_neighbours=100] [streamed_items=30000] [warm_items=100000] [budget_mb=1024]
        [sample=200] [keep=true] [--json]

Events are generated: Zipf items in planted clusters, users of exponential activity, some 30 events
each. Every size is solved by the Spark job, as the pipeline runs it, on two cores, in a session of
its own that has run a small job before: A and the table of G are written, all items are solved, and
the result is written to parquet. A size of 0 leaves its part out.

- ``peak_gib`` is the proportional set size (PSS) of the Python workers together, mapped files
  included, sampled while the job runs. ``idle_gib`` is what they take before any problem, with
  NumPy, PyArrow and the compiled solver in them: jobs get the budget less that, so that the peak is
  to stay within ``budget_gib``.
- ``objective_vs_dense`` is the objective of a sample of items relative to that of the dense solver:
  of each, G of all its candidates as a plain product, λ and β the same. For the smallest size the
  sample is every item.
- ``streamed_*`` solves a log within a budget that is too small for it, so that no worker holds it.
- The warm start adds a day: 3% of the events, of a tenth of the users.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from common import arguments, report
from memory import PeakMemory, process_bytes
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recs.session import get_session
from recs.slim import fit as slim
from recs.slim import solver
from recs.slim.gram import Gram

CORES = 2
L1, L2 = 5.0, 5.0
#: Share of a day's events, and of its users.
DAY_EVENTS, DAY_USERS = 0.03, 0.1
#: Warm tolerances that are measured; the first is the default of ``slim.warm_tolerance``.
WARM_TOLERANCES = (0.03, 1e-3, 0.1)


@dataclass(frozen=True)
class Log:
    """Distinct pairs of a user and an item."""

    num_users: int
    num_items: int
    users: np.ndarray
    items: np.ndarray

    def where(self, chosen: np.ndarray) -> Log:
        return Log(self.num_users, self.num_items, self.users[chosen], self.items[chosen])

    def matrix(self) -> sp.csc_matrix:
        ones = np.ones(len(self.users), np.float32)
        return sp.csc_matrix((ones, (self.users, self.items)), (self.num_users, self.num_items))

    def dataframe(self, spark: SparkSession, path: Path) -> DataFrame:
        table = pa.table({"user_id": self.users, "item_id": self.items})
        pq.write_table(table, path, row_group_size=2**20)
        return spark.read.parquet(str(path))


def generate(num_items: int, seed: int = 0) -> Log:
    """Return a log of twice as many users as items, or 200,000."""
    rng = np.random.default_rng(seed)
    num_users = min(2 * num_items, 200_000)
    num_clusters = max(20, num_items // 500)
    size = num_items // num_clusters
    events = np.minimum(5 + rng.exponential(30, num_users).astype(np.int64), 2000)
    user = np.repeat(np.arange(num_users), events)
    tastes = rng.integers(0, num_clusters, (num_users, 3))
    cluster = tastes[user, rng.integers(0, 3, len(user))]
    stray = rng.random(len(user)) < 0.1
    cluster[stray] = rng.integers(0, num_clusters, stray.sum())
    zipf = np.exp(rng.random(len(user)) * np.log(size + 1)).astype(np.int64) - 1
    item = rng.permutation(num_items)[np.minimum(zipf, size - 1) * num_clusters + cluster]
    pairs = np.unique(user * num_items + item)
    users, items = np.divmod(pairs, num_items)
    return Log(num_users, num_items, users.astype(np.int32), items.astype(np.int32))


def run_job(
    spark: SparkSession,
    log: Log,
    folder: Path,
    budget: int,
    warm: DataFrame | None = None,
    blocks: int | None = None,
    **more: Any,
) -> tuple[DataFrame, float]:
    """Run the job; return the fits as written, and its seconds."""
    folder.mkdir()
    interactions = log.dataframe(spark, folder / "events.parquet")
    start = time.perf_counter()
    fits = slim.fit(
        interactions,
        str(folder / "work"),
        solver.Options(L1, L2, **more),
        num_users=log.num_users,
        num_items=log.num_items,
        memory_budget_bytes=budget,
        warm_start=warm,
        blocks=blocks,
    )
    fits.write.parquet(str(folder / "fits"))
    written = spark.read.parquet(str(folder / "fits"))
    slim.require_converged(written)
    return written, time.perf_counter() - start


def dense_objectives(log: Log, items: np.ndarray) -> np.ndarray:
    """Solve items with the dense solver, each on G of its candidates alone."""
    a = log.matrix()
    by_user = a.tocsr()
    found = np.zeros(len(items))
    for n, i in enumerate(items):
        shared = np.asarray(by_user[a[:, [i]].indices].sum(axis=0)).ravel()
        shared[i] = 0
        members = np.append(np.flatnonzero(shared > L1), i)
        part = a[:, members]
        gram = (part.T @ part).toarray().astype(np.float32)
        last = np.array([len(members) - 1], np.int32)
        found[n] = solver.solve(Gram(gram), np.diag(gram), last, solver.Options(L1, L2)).objective[
            0
        ]
    return found


def summary(fits: DataFrame) -> dict[str, Any]:
    sums = fits.agg(
        F.max("kkt_residual").alias("kkt_residual"),
        F.sum("objective").alias("objective"),
        F.sum("nonzeros").alias("nonzeros"),
        F.sum((F.col("iterations") > 0).cast("int")).alias("solved"),
    )
    return sums.collect()[0].asDict()


def name_of(num_items: int) -> str:
    return f"{num_items // 10**6}m" if num_items >= 10**6 else f"{num_items // 1000}k"


def start_session(folder: Path) -> tuple[SparkSession, int]:
    """Return a session whose workers are new and have loaded all code, and the bytes they take.

    Workers keep the files of their last problem mapped, which would count with the next one's.
    """
    running = SparkSession.getActiveSession()
    if running:
        running.stop()
    spark = get_session(
        "slim_scale",
        master=f"local[{CORES}]",
        conf={
            "spark.sql.shuffle.partitions": "8",
            "spark.local.dir": str(folder / "local"),
        },
    )
    small = generate(1000)
    for bytes_given in (2**30, 350_000):  # held by a host, and streamed
        with tempfile.TemporaryDirectory() as place:
            run_job(spark, small, Path(place) / "small", bytes_given, max_neighbours=5)
    return spark, process_bytes()["python_workers"]


def main() -> None:
    given = arguments(
        "items",
        "neighbours_items",
        "max_neighbours",
        "streamed_items",
        "warm_items",
        "budget_mb",
        "sample",
    )
    sizes = [int(size) for size in given.get("items", "10000,100000,300000").split(",")]
    neighbours_items = int(given.get("neighbours_items", 1_000_000))
    streamed_items = int(given.get("streamed_items", 30_000))
    warm_items = int(given.get("warm_items", 100_000))
    budget = int(given.get("budget_mb", 1024)) * 2**20
    max_neighbours = int(given.get("max_neighbours", 100))
    num_sampled = int(given.get("sample", 200))
    figures: dict[str, Any] = {"l1": L1, "l2": L2, "max_neighbours": max_neighbours}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        start_session(folder)  # whose workers compile, which takes memory that they keep

        def measure(log: Log, **more: Any) -> DataFrame:
            name = name_of(log.num_items)
            spark, idle = start_session(folder)
            # So that all that the workers take stays within the budget.
            allowed = budget - idle
            with PeakMemory() as memory:
                fits, seconds = run_job(spark, log, folder / name, allowed, **more)
            found = summary(fits)
            figures.update(
                {
                    f"events_{name}": len(log.users),
                    f"seconds_{name}": seconds,
                    f"seconds_per_item_{name}": seconds / log.num_items,
                    f"idle_gib_{name}": idle / 2**30,
                    f"peak_gib_{name}": memory.gib["python_workers"],
                    f"budget_gib_{name}": budget / 2**30,
                    f"kkt_residual_{name}": found["kkt_residual"],
                    f"objective_{name}": found["objective"],
                    f"nonzeros_{name}": found["nonzeros"],
                }
            )
            print({key: value for key, value in figures.items() if key.endswith(name)}, flush=True)
            return fits

        if streamed_items:
            figures |= streamed(generate(streamed_items), folder, max_neighbours)
        for size in filter(None, sizes):
            log = generate(size)
            fits = measure(log)
            rng = np.random.default_rng(0)
            sampled = rng.permutation(size)[: size if size == min(sizes) else num_sampled]
            named = pa.table({"item_id": sampled.astype(np.int32)}).to_pandas()
            chosen = get_session().createDataFrame(named)
            ours = fits.join(chosen, "item_id").agg(F.sum("objective")).collect()[0][0]
            dense = dense_objectives(log, sampled).sum()
            figures[f"objective_vs_dense_{name_of(size)}"] = ours / dense
        if neighbours_items:
            measure(generate(neighbours_items), max_neighbours=max_neighbours)
        if warm_items:
            spark, idle = start_session(folder)
            log = generate(warm_items)
            figures |= warm_start(spark, log, folder / "warm", budget - idle)
        get_session().stop()
    report("slim_scale", figures, {}, given)


def streamed(log: Log, folder: Path, max_neighbours: int) -> dict[str, Any]:
    """Return what it costs to solve a log in half of the memory that it takes."""
    spark, idle = start_session(folder)
    small = 4 * len(log.users) + 2**20  # it takes 8 bytes an entry, and O(U + N)
    more: dict[str, Any] = {"max_neighbours": max_neighbours, "blocks": 32}
    with PeakMemory() as memory:
        tight, longer = run_job(spark, log, folder / "tight", small, **more)
    roomy, seconds = run_job(spark, log, folder / "roomy", 2**30, **more)
    return {
        "streamed_items": log.num_items,
        "streamed_budget_gib": small / 2**30,
        "streamed_idle_gib": idle / 2**30,
        "streamed_peak_gib": memory.gib["python_workers"],
        "streamed_seconds": longer,
        "streamed_seconds_in_memory": seconds,
        "streamed_objective_vs_in_memory": summary(tight)["objective"]
        / summary(roomy)["objective"],
    }


def warm_start(spark: SparkSession, log: Log, folder: Path, budget: int) -> dict[str, Any]:
    """Return what a day's events cost with the weights of the day before, and without."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    today = rng.random(log.num_users) < DAY_USERS
    new = today[log.users] & (rng.random(len(log.users)) < DAY_EVENTS / DAY_USERS)
    before, _ = run_job(spark, log.where(~new), folder / "before", budget)
    full, seconds = run_job(spark, log, folder / "full", budget)
    full_objective = summary(full)["objective"]
    figures: dict[str, Any] = {"warm_new_events": int(new.sum()), "warm_full_seconds": seconds}
    for tolerance in WARM_TOLERANCES:
        place = folder / f"warm-{tolerance:g}"
        weights = slim.item_weights(before)
        fits, seconds = run_job(spark, log, place, budget, weights, warm_tolerance=tolerance)
        found = summary(fits)
        figures |= {
            f"warm_share_solved_{tolerance:g}": found["solved"] / log.num_items,
            f"warm_seconds_{tolerance:g}": seconds,
            f"warm_objective_vs_full_{tolerance:g}": found["objective"] / full_objective,
        }
    return figures


if __name__ == "__main__":
    main()
