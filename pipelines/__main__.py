"""``python -m pipelines`` is ``recs``."""

import sys

from pipelines.cli import main

sys.exit(main())
