"""spark-submit jobs/tune_slim.py --config FILE [key=value ...]: the search ``recs tune slim``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["tune", "slim", *sys.argv[1:]])
