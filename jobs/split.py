"""spark-submit jobs/split.py --config FILE [key=value ...]: the stage ``recs split``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["split", *sys.argv[1:]])
