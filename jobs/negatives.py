"""spark-submit jobs/negatives.py --config FILE [key=value ...]: the stage ``recs negatives``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["negatives", *sys.argv[1:]])
