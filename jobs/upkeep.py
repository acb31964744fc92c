"""spark-submit jobs/upkeep.py --config FILE [key=value ...]: the stage ``recs upkeep``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["upkeep", *sys.argv[1:]])
