"""spark-submit jobs/sequences.py --config FILE [key=value ...]: the stage ``recs sequences``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["sequences", *sys.argv[1:]]))
