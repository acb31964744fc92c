"""spark-submit jobs/ingest.py --config FILE [key=value ...]: the stage ``recs ingest``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["ingest", *sys.argv[1:]])
