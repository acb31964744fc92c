"""``python -m pipelines`` is ``recs``."""

from pipelines.cli import console

console()
