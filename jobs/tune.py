"""spark-submit jobs/tune.py MODEL --config FILE [key=value ...]: ``recs tune MODEL``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["tune", *sys.argv[1:]])
