"""spark-submit jobs/evaluate.py --config FILE [key=value ...]: the stage ``recs evaluate``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
