"""spark-submit jobs/sequences.py --config FILE [key=value ...]: the stage ``recs sequences``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["sequences", *sys.argv[1:]])
