"""spark-submit jobs/fit_popularity.py --config FILE [k=v ...]: stage ``recs fit-popularity``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit-popularity", *sys.argv[1:]]))
