"""spark-submit jobs/sequentiality.py --config FILE [key=value ...]: ``recs sequentiality``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["sequentiality", *sys.argv[1:]])
