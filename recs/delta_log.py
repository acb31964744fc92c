"""Delta's log as files: which versions a table has, and what each commit says of itself.

Asking Delta takes a Spark job a question, of which a stage has several; a listing and the first
line of a file tell the same.
"""

from __future__ import annotations

import json
import re
from typing import Any

from recs.storage import children, filesystem, join

_COMMIT = re.compile(r"(\d{20})\.json$")
# Folders of Databricks that Python reads through a mount, which may lag behind what Spark wrote.
_MOUNTED = ("dbfs:", "/dbfs/", "/Volumes/")


def is_readable(root: str) -> bool:
    """Tell whether Python sees the files under ``root`` as Spark does."""
    return not root.startswith(_MOUNTED)


def versions(table: str) -> list[int]:
    """Return the versions of a table whose commits are still there, ascending; none if it is not.

    Delta removes commits of long ago (see :mod:`recs.schema`), but never the newest.
    """
    found = children(join(table, "_delta_log"))
    return sorted(int(match[1]) for name in found if (match := _COMMIT.search(name)))


def commit_info(table: str, version: int) -> dict[str, Any]:
    """Return what a commit says of itself: ``operationMetrics``, ``userMetadata`` and more."""
    fs, path = filesystem(join(table, "_delta_log", f"{version:020}.json"))
    with fs.open(path, "rb") as file:
        for line in file:
            action = json.loads(line)
            if "commitInfo" in action:  # the first line
                return dict(action["commitInfo"])
    return {}
