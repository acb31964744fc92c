"""spark-submit jobs/export.py --config FILE [key=value ...]: the stage ``recs export``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["export", *sys.argv[1:]])
