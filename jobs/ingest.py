"""spark-submit jobs/ingest.py --config FILE [key=value ...]: the stage ``recs ingest``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
