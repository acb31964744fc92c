"""spark-submit jobs/compare.py --config FILE [key=value ...]: the stage ``recs compare``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["compare", *sys.argv[1:]])
