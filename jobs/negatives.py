"""spark-submit jobs/negatives.py --config FILE [key=value ...]: the stage ``recs negatives``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["negatives", *sys.argv[1:]]))
