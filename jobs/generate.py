"""spark-submit jobs/generate.py data=FOLDER [key=value ...]: a generated log, ``recs generate``."""

import sys

from pipelines.cli import console

if __name__ == "__main__":
    console(["generate", *sys.argv[1:]])
