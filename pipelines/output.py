"""What commands print: text for people and, with ``--json``, one document for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any


class Output:
    """Prints what a command has to say.

    With ``as_json`` standard output holds the document alone, and people read standard error.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def say(self, text: str) -> None:
        """Print text for people."""
        print(text, file=sys.stderr if self._as_json else sys.stdout, flush=True)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Send what stages print in the block, as the lines of a training, where people read."""
        with redirect_stdout(sys.stderr) if self._as_json else nullcontext():
            yield

    def rows(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
        """Print rows for people, a column as wide as its longest value."""
        cells = [[*columns], *([_cell(row[column]) for column in columns] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        for row in cells:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.say("  ".join(padded).rstrip())

    def document(self, document: dict[str, Any]) -> None:
        """Print the document, if it is asked for."""
        if self._as_json:
            print(json.dumps(_without_nan(document), default=str, allow_nan=False), flush=True)


def metrics_table(metrics: list[dict[str, Any]]) -> str:
    """Lay the headline metrics out with a column a model.

    They are those at 10 (or the longest list), and of the whole ranking AUC and MRR. All the others
    are in table ``metrics``.
    """
    models = sorted({row["model"] for row in metrics})
    lengths = {row["k"] for row in metrics} - {None}
    headline = 10 if 10 in lengths else max(lengths, default=None)
    values = {
        (row["protocol"], row["metric"], row["k"], row["model"]): row["value"]
        for row in metrics
        if row["k"] == headline or (row["k"] is None and row["metric"] in ("auc", "mrr"))
    }
    keys = sorted({key[:3] for key in values}, key=lambda key: (key[0], key[1], key[2] or 0))
    lines = [f"{'protocol':<15}{'metric':<20}" + "".join(f"{model:>14}" for model in models)]
    for protocol, metric, k in keys:
        name = metric if k is None else f"{metric}@{k}"
        cells = [values.get((protocol, metric, k, model)) for model in models]
        shown = "".join(f"{'–' if cell is None else format(cell, '.4f'):>14}" for cell in cells)
        lines.append(f"{protocol:<15}{name:<20}{shown}")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "–" if value is None else str(value)


def _without_nan(value: Any) -> Any:
    """Return a document with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
