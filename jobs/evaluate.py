"""spark-submit jobs/evaluate.py --config FILE [key=value ...]: the stage ``recs evaluate``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["evaluate", *sys.argv[1:]])
