"""spark-submit jobs/train.py --config FILE [key=value ...]: the stage ``recs train``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["train", *sys.argv[1:]])
