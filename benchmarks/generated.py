"""A generated log on disk, and the stages of the pipeline measured on it in one running session."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from memory import PeakMemory

from pipelines.resources import conf_folder
from pipelines.run import open_lake, run_stages, stages_named
from recs.config import Config, load_config
from recs.data.synthetic import SyntheticConfig, generate, write
from recs.lake import Lake
from recs.session import get_session


def write_log(folder: Path, log: SyntheticConfig, *, bad_share: float = 0.01) -> float:
    """Write a generated log as Parquet files to ``folder``/raw; return seconds."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    started = time.perf_counter()
    write(generate(get_session(), log), str(raw), bad_share=bad_share, format="parquet")
    return time.perf_counter() - started


def configure(folder: Path, *overrides: str) -> Config:
    """Return the demo's configuration of ``folder``/raw, all of it served, without a k-core."""
    given = [
        f"data={folder}/raw",
        f"root={folder}/lake",
        "mode=serve",
        "events.sources.0.format=parquet",
        "split.min_item_events=1",
        *overrides,
    ]
    return load_config(conf_folder() / "demo.yaml", given)


def run_measured(
    config: Config, names: Sequence[str]
) -> tuple[Lake, dict[str, float], dict[str, dict[str, float]]]:
    """Run stages; return the lake, seconds a stage (of the ledger) and peak GiB by process."""
    lake = open_lake(config)
    seconds, peaks = {}, {}
    for name in names:
        with PeakMemory() as memory:
            outcome = run_stages(stages_named(config, name), config, lake)
        seconds[name], peaks[name] = round(sum(outcome.seconds.values()), 2), memory.gib
    return lake, seconds, peaks
