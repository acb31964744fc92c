"""spark-submit jobs/sequentiality.py --config FILE [key=value ...]: ``recs sequentiality``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["sequentiality", *sys.argv[1:]]))
