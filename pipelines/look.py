"""What the ledger tells of runs, at work and ended."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from recs import attempts
from recs.lake import Lake
from recs.ledger import Ledger, label

COLUMNS = ("state", "stage", "mode", "run_id", "started", "seconds", "rows", "error")


def list_runs(lake: Lake, last: int) -> list[dict[str, Any]]:
    """Return the last attempts at stages, of both modes, oldest first; then those at work."""
    ended = [
        {
            "state": row["state"],
            "stage": label(row["stage"], row["part"]),
            "mode": row["mode"],
            "run_id": row["run_id"],
            "started": _text(row["started_at"].astimezone(UTC)),
            "seconds": None if row["seconds"] is None else round(row["seconds"], 1),
            "rows": sum((row["rows"] or {}).values()),
            "error": row["error"],
        }
        for row in Ledger(lake).rows()[-last:]
    ]
    at_work = [
        {
            "state": "at work",
            "stage": told["stage"],
            "mode": told["mode"],
            "run_id": told["run_id"],
            "started": _text(datetime.fromtimestamp(told["began"], UTC)),
            "seconds": round(told["seen"] - told["began"], 1),
            "rows": None,
            "error": None,
        }
        for told in attempts.at_work(lake.location)
    ]
    return [*ended, *sorted(at_work, key=lambda row: str(row["started"]))]


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
