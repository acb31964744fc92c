"""spark-submit jobs/fit.py --config FILE [key=value ...]: the stage ``recs fit``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["fit", *sys.argv[1:]])
