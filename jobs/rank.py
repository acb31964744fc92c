"""spark-submit jobs/rank.py --config FILE [key=value ...]: the stage ``recs rank``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["rank", *sys.argv[1:]])
