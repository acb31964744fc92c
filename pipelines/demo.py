"""The demo's input: generated events with planted structure, bad rows among them."""

from __future__ import annotations

from pipelines.generate import Settings, generate_log, is_whole


def make_input(folder: str, verbose: bool = False) -> None:
    """Write the demo's raw files under ``folder``, unless they are there."""
    if not is_whole(folder):
        generate_log(Settings(data=folder), verbose=verbose)
