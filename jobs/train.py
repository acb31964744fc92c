"""spark-submit jobs/train.py --config FILE [key=value ...]: the stage ``recs train``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
