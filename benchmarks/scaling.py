"""Seconds of every stage as the log grows thirtyfold, with users and items in proportion.

``python benchmarks/scaling.py [least=3e5] [factors=1,3,10,30] [work=FOLDER] [keep=true]``

Draws ``docs/scaling.png`` if its result is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from common import REPOSITORY, arguments, is_kept, report
from generated import configure, run_measured, write_log
from matplotlib.figure import Figure

from recs.data.synthetic import SyntheticConfig

STAGES = (
    "ingest",
    "vocabulary",
    "split",
    "sequences",
    "positives",
    "negatives",
    "fit/popularity",
    "fit/slim",
    "recommend",
)
EVENTS_A_USER, EVENTS_AN_ITEM = 50, 300


def log_of(events: int) -> SyntheticConfig:
    """Return a log of this size, of the same shape as every other."""
    items = events // EVENTS_AN_ITEM
    return SyntheticConfig(
        num_events=events,
        num_users=events // EVENTS_A_USER,
        num_items=items,
        num_clusters=max(1, items // 50),
    )


def draw(seconds: dict[int, dict[str, float]], path: Path) -> None:
    """Draw the seconds of every stage over the events, both on logarithmic axes."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    sizes = sorted(seconds)
    for stage in STAGES:
        axes.plot(sizes, [seconds[size][stage] for size in sizes], marker="o", label=stage)
    axes.set(xscale="log", yscale="log", xlabel="events", ylabel="seconds")
    axes.set_title("Seconds of each stage, users and items in proportion to events")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(ncols=2, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    given = arguments("least", "factors", "work")
    least = int(float(given.get("least", 3e5)))
    factors = [int(factor) for factor in given.get("factors", "1,3,10,30").split(",")]
    work = Path(given.get("work") or tempfile.mkdtemp(prefix="recs-scaling-"))
    seconds: dict[int, dict[str, float]] = {}
    # The smallest once more at first: a cold JVM is none of the log's cost.
    for number, events in enumerate([least] + [least * factor for factor in factors]):
        folder = work / str(number)
        write_log(folder, log_of(events))
        _, seconds[events], _ = run_measured(configure(folder, "models=slim"), STAGES)
        print(events, seconds[events], flush=True)
        shutil.rmtree(folder)
    figures = {
        "seconds": seconds,
        "users_per_event": 1 / EVENTS_A_USER,
        "items_per_event": 1 / EVENTS_AN_ITEM,
    }
    report("scaling", figures, {}, given)
    if is_kept(given):
        draw(seconds, REPOSITORY / "docs" / "scaling.png")


if __name__ == "__main__":
    main()
