"""spark-submit jobs/generate.py data=FOLDER [key=value ...]: a generated log, ``recs generate``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
