"""spark-submit jobs/positives.py --config FILE [key=value ...]: the stage ``recs positives``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["positives", *sys.argv[1:]])
