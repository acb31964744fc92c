"""spark-submit jobs/split.py --config FILE [key=value ...]: the stage ``recs split``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["split", *sys.argv[1:]]))
