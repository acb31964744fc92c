"""spark-submit jobs/recommend.py --config FILE [key=value ...]: the stage ``recs recommend``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["recommend", *sys.argv[1:]])
