"""spark-submit jobs/vocabulary.py --config FILE [key=value ...]: the stage ``recs vocabulary``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["vocabulary", *sys.argv[1:]])
