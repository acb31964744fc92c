"""spark-submit jobs/tune_networks.py MODEL --config FILE [key=value ...]: ``recs tune MODEL``."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
