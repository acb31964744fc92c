"""spark-submit jobs/positives.py --config FILE [key=value ...]: the stage ``recs positives``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["positives", *sys.argv[1:]]))
