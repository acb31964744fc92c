"""spark-submit jobs/run.py --config FILE [key=value ...]: all stages, ``recs run``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["run", *sys.argv[1:]])
