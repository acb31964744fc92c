"""spark-submit jobs/vocabulary.py --config FILE [key=value ...]: the stage ``recs vocabulary``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["vocabulary", *sys.argv[1:]]))
