"""spark-submit jobs/embed.py --config FILE [key=value ...]: the stage ``recs embed``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["embed", *sys.argv[1:]])
