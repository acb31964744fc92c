"""spark-submit jobs/fit_slim.py --config FILE [key=value ...]: the stage ``recs fit-slim``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["fit-slim", *sys.argv[1:]])
