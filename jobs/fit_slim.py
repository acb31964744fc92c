"""spark-submit jobs/fit_slim.py --config FILE [key=value ...]: the stage ``recs fit-slim``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit-slim", *sys.argv[1:]]))
