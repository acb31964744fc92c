"""spark-submit jobs/embed.py --config FILE [key=value ...]: the stage ``recs embed``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
