"""SLIM on MovieLens 1M against fastslim 0.3.0 and scikit-learn's ElasticNet.

    python benchmarks/slim.py data=FOLDER [l1=5] [l2=5] [sample=24] [keep=true] [--json]

FOLDER holds ``ml-1m-sasrec/ml-1m.txt.gz`` or is that folder. The training part is all but each
user's last two events. All contenders minimise the same objective on the same matrix, on two
threads, each after a run on a small part of it, so that nothing is compiled while the clock runs;
scikit-learn solves a seeded sample of items, one a thread, and its time is scaled up to all.
The Spark job is the pipeline's stage ``fit/slim`` on the lake made from the same file.
fastslim and scikit-learn come with the extra ``bench`` (``make bench-slim ARGS=data=FOLDER``).
"""

from __future__ import annotations

import gzip
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from common import arguments, data_file, report

from pipelines.ingest import INGEST
from pipelines.job import run_stage
from pipelines.models import MODELS
from pipelines.prepare import SPLIT, VOCABULARY
from pipelines.resources import conf_folder
from pipelines.run import open_lake, run_stages
from recs import readers
from recs.arrays.matrix import Csr
from recs.config import load_config
from recs.slim import gram, solver
from recs.slim.gram import Gram

THREADS = 2
#: Repeats of our own run, which takes a fraction of a second; the median counts.
REPEATS = 5
#: Runs of the Spark job before the clock: the JVM compiles its own part late.
WARM_UPS = 3
#: Relative difference in objective above which two contenders did not solve the same problem.
AGREEMENT = 1e-4


def load(folder: Path) -> sp.csr_matrix:
    """Return the training part, users × items, all ones."""
    with gzip.open(data_file(folder, "ml-1m-sasrec", "ml-1m.txt.gz"), "rt") as lines:
        users, items = np.loadtxt(lines, dtype=np.int64).T - 1
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    left = np.bincount(users)[users] - (np.arange(len(users)) - np.searchsorted(users, users))
    train = left > 2
    shape = (users.max() + 1, items.max() + 1)
    a = sp.csr_matrix((np.ones(train.sum()), (users[train], items[train])), shape=shape)
    a.sort_indices()
    return a


def recs_slim(a: sp.csr_matrix, l1: float, l2: float) -> tuple[sp.csc_matrix, dict[str, float]]:
    """Solve with our Gram and our solver; return W [N, N], a column an item, and the seconds."""
    start = time.perf_counter()
    num_items = a.shape[1]
    by_item = _csr(a.T.tocsr())
    by_user = None if gram.prefer_bits(a.shape[0], num_items, a.nnz, True) else _csr(a)
    bounds = gram.row_blocks(by_item, THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        rows = pool.map(
            lambda k: gram.gram_rows(by_item, by_user, bounds[k], bounds[k + 1]), range(THREADS)
        )
        source = Gram(np.concatenate(list(rows)))
        made = time.perf_counter()
        diagonal = np.diff(by_item.indptr).astype(np.float64)
        parts = [np.arange(k, num_items, THREADS) for k in range(THREADS)]
        solved = list(
            pool.map(lambda p: solver.solve(source, diagonal, p, solver.Options(l1, l2)), parts)
        )
    end = time.perf_counter()
    columns = np.concatenate(
        [np.repeat(p, np.diff(s.offsets)) for p, s in zip(parts, solved, strict=True)]
    )
    weights = np.concatenate([s.weights for s in solved]).astype(np.float64)
    neighbours = np.concatenate([s.neighbours for s in solved])
    w = sp.csc_matrix((weights, (neighbours, columns)), shape=(num_items, num_items))
    return w, {
        "seconds": end - start,
        "gram_seconds": made - start,
        "kkt_residual": max(float(s.kkt_residual.max()) for s in solved),
    }


def spark_job(folder: str, l1: float, l2: float) -> tuple[float, float]:
    """Run the pipeline's stage ``fit/slim``; return its seconds, committed, and the objective.

    The lake is made before the clock starts, by the stages before it from the same file. The clock
    runs from a Spark session at work to the row in ``runs`` that commits the weights.
    """
    with tempfile.TemporaryDirectory() as root:
        overrides = [f"data={folder}", f"root={root}", "evaluate.split=validation"]
        config = load_config(
            conf_folder() / "ml-1m-sasrec.yaml", [*overrides, f"slim.l1={l1}", f"slim.l2={l2}"]
        )
        lake = open_lake(config)
        run_stages([INGEST, VOCABULARY, SPLIT], config, lake)
        (fit,) = MODELS["slim"].fits
        for number in range(WARM_UPS):
            run_stage(fit, lake, config, f"warm-{number}")
        times = []
        for number in range(REPEATS):
            start = time.perf_counter()
            run_stage(fit, lake, config, f"timed-{number}")
            times.append(time.perf_counter() - start)
        objective = readers.read(lake, "item_fits").agg({"objective": "sum"}).collect()[0][0]
        lake.spark.stop()
        return sorted(times)[REPEATS // 2], objective


def fast_slim(a: sp.csr_matrix, l1: float, l2: float) -> sp.csc_matrix:
    """Solve with fastslim at the tolerance at which it is fastest and still right."""
    import fastslim

    return fastslim.fit(a, lambd=l1, beta=l2, tol=1e-3, n_threads=THREADS).tocsc()


def scikit_learn(a: sp.csr_matrix, l1: float, l2: float, items: np.ndarray) -> sp.csc_matrix:
    """Solve ``items`` with ElasticNet, whose objective has 1/(2n) in front: α = (λ + β) / n."""
    from sklearn.linear_model import ElasticNet

    columns = a.tocsc()
    of_thread = threading.local()  # a copy each, in which the item's own column is zeros

    def one(item: int) -> np.ndarray:
        model = ElasticNet(
            alpha=(l1 + l2) / a.shape[0],
            l1_ratio=l1 / (l1 + l2),
            positive=True,
            fit_intercept=False,
            max_iter=10_000,
        )
        if not hasattr(of_thread, "columns"):
            of_thread.columns = columns.copy()
        own = slice(*columns.indptr[item : item + 2])
        of_thread.columns.data[own] = 0.0
        weights = model.fit(of_thread.columns, columns[:, [item]].toarray().ravel()).coef_
        of_thread.columns.data[own] = columns.data[own]
        return weights

    with ThreadPoolExecutor(THREADS) as pool:
        return sp.csc_matrix(np.array(list(pool.map(one, items))).T)


def objective(a: sp.csr_matrix, w: sp.csc_matrix, l1: float, l2: float, items: np.ndarray) -> float:
    """Return the objective summed over ``items``, whose weights are the columns of ``w``."""
    residual = (a.tocsc()[:, items] - a.tocsc() @ w).data
    return float(0.5 * residual @ residual + l1 * w.sum() + l2 / 2 * (w.data @ w.data))


def seconds(call: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    given = arguments("l1", "l2", "sample")
    if "data" not in given:
        raise SystemExit("data=FOLDER is missing")
    a = load(Path(given["data"]))
    l1, l2 = float(given.get("l1", 5)), float(given.get("l2", 5))
    everything = np.arange(a.shape[1])
    sample = np.random.default_rng(0).choice(everything, int(given.get("sample", 24)), False)

    small = a[:300, :200]
    recs_slim(a[:, :50].tocsr(), l1, l2)
    fast_slim(small, l1, l2)
    scikit_learn(small, l1, l2, everything[:2])

    runs = sorted((recs_slim(a, l1, l2) for _ in range(REPEATS)), key=lambda r: r[1]["seconds"])
    ours, times = runs[REPEATS // 2]
    print(f"recs: {times['seconds']:.2f} s, of it Gram {times['gram_seconds']:.2f} s", flush=True)
    job_seconds, job_objective = spark_job(given["data"], l1, l2)
    print(f"recs, Spark job: {job_seconds:.2f} s", flush=True)
    fast_seconds, fast = seconds(lambda: fast_slim(a, l1, l2))
    print(f"fastslim: {fast_seconds:.2f} s", flush=True)
    sample_seconds, theirs = seconds(lambda: scikit_learn(a, l1, l2, sample))
    sklearn_seconds = sample_seconds * len(everything) / len(sample)
    print(f"scikit-learn: {sklearn_seconds:.0f} s, from {len(sample)} items", flush=True)

    figures: dict[str, object] = {
        "objective": objective(a, ours, l1, l2, everything),
        "objective_job": job_objective,
        "objective_fastslim": objective(a, fast, l1, l2, everything),
        "objective_sample": objective(a, ours[:, sample], l1, l2, sample),
        "objective_sample_sklearn": objective(a, theirs, l1, l2, sample),
        "kkt_residual": times["kkt_residual"],
        "nonzeros": int(ours.nnz),
        "l1": l1,
        "l2": l2,
        "threads": THREADS,
        "solver_seconds": times["seconds"],
        "gram_seconds": times["gram_seconds"],
        "job_seconds": job_seconds,
        "fastslim_seconds": fast_seconds,
        "sklearn_seconds": sklearn_seconds,
        "sklearn_sampled_items": len(sample),
    }
    for mine, other in (
        ("objective", "objective_fastslim"),
        ("objective", "objective_job"),
        ("objective_sample", "objective_sample_sklearn"),
    ):
        if abs(figures[mine] / figures[other] - 1) > AGREEMENT:  # type: ignore[operator]
            raise SystemExit(f"{mine} {figures[mine]} and {other} {figures[other]} differ")
    ratios = {
        "solver_vs_fastslim": fast_seconds / times["seconds"],
        "job_vs_fastslim": fast_seconds / job_seconds,
        "solver_vs_sklearn": sklearn_seconds / times["seconds"],
    }
    report("slim", figures, ratios, given)


def _csr(a: sp.csr_matrix) -> Csr:
    return Csr(a.indptr.astype(np.int64), a.indices.astype(np.int32), None, a.shape)


if __name__ == "__main__":
    main()
