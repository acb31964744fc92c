"""spark-submit jobs/export.py --config FILE [key=value ...]: the stage ``recs export``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
