"""What is kept of a lake, and how it is tidied."""

from __future__ import annotations

from recs.config.values import PositiveInt, Share
from recs.settings import Strict


class Upkeep(Strict):
    """What ``recs upkeep`` puts together and removes.

    Attributes
    ----------
    files, small_mb
        A table of more files than this, which are smaller than so many MiB on average, is
        compacted.
    deleted_share
        A table of which a larger share of the rows in files is deleted is compacted.
    models
        Trained models, and searches, that are kept of each network, beside what is embedded.
    unfinished_days
        Days after which a training or search that did not end is given up, and its folder removed.
    """

    files: PositiveInt = 16
    small_mb: PositiveInt = 64
    deleted_share: Share = 0.2
    models: PositiveInt = 3
    unfinished_days: PositiveInt = 14
