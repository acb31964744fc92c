"""spark-submit jobs/fit_popularity.py --config FILE [k=v ...]: stage ``recs fit-popularity``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["fit-popularity", *sys.argv[1:]])
