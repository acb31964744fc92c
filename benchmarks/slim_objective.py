"""SLIM's objective on all of MovieLens 100k against scikit-learn's ElasticNet, item by item.

    python benchmarks/slim_objective.py data=FOLDER [l1=5] [l2=5] [keep=true] [--json]

FOLDER holds ``ml-100k/u.data.gz`` or is that folder; every rating is an entry of 1.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from common import arguments, data_file, report
from slim import objective, recs_slim, scikit_learn, seconds


def load(folder: Path) -> sp.csr_matrix:
    """Return all ratings as users × items of ones."""
    with gzip.open(data_file(folder, "ml-100k", "u.data.gz"), "rt") as lines:
        users, items = np.loadtxt(lines, dtype=np.int64, usecols=(0, 1)).T - 1
    a = sp.csr_matrix((np.ones(len(users)), (users, items)))
    a.sort_indices()
    return a


def main() -> None:
    given = arguments("l1", "l2")
    if "data" not in given:
        raise SystemExit("data=FOLDER is missing")
    a = load(Path(given["data"]))
    l1, l2 = float(given.get("l1", 5)), float(given.get("l2", 5))
    items = np.arange(a.shape[1])
    ours, times = recs_slim(a, l1, l2)
    their_seconds, theirs = seconds(lambda: scikit_learn(a, l1, l2, items))
    mine, other = objective(a, ours, l1, l2, items), objective(a, theirs, l1, l2, items)
    figures = {
        "objective": mine,
        "objective_sklearn": other,
        "relative_difference": abs(mine / other - 1),
        "kkt_residual": times["kkt_residual"],
        "l1": l1,
        "l2": l2,
        "sklearn_seconds": their_seconds,
    }
    report("slim_objective", figures, {}, given)


if __name__ == "__main__":
    main()
