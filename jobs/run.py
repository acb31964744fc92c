"""spark-submit jobs/run.py --config FILE [key=value ...]: all stages, ``recs run``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
