"""PySpark's worker daemon with a short ``sys.path``; local sessions fork their workers from here.

Before each task a worker calls ``importlib.invalidate_caches()``, which reads every archive on
``sys.path`` anew. Spark puts its own zips there; with pyspark installed they serve nothing, and
taking them off saves most of the time of a small task. NumPy and Arrow are loaded once, before the
fork.
"""

import os
import sys

_ARCHIVES = ("pyspark.zip", "py4j-", "spark-core_")

sys.path[:] = [path for path in sys.path if not os.path.basename(path).startswith(_ARCHIVES)]
sys.path_importer_cache.clear()

import numpy  # noqa: E402, F401
import pyarrow  # noqa: E402, F401
from pyspark import daemon  # noqa: E402

if __name__ == "__main__":
    daemon.manager()
