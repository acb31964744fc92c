"""spark-submit jobs/recommend.py --config FILE [key=value ...]: the stage ``recs recommend``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["recommend", *sys.argv[1:]]))
