"""The demo's input: generated events with planted structure, bad rows among them."""

from __future__ import annotations

from recs.data.synthetic import SyntheticConfig, generate, write
from recs.session import get_session
from recs.storage import filesystem


def make_input(folder: str, verbose: bool = False) -> None:
    """Write the demo's raw files under ``folder``, unless they are there."""
    fs, path = filesystem(folder)
    if fs.exists(path) and fs.ls(path):
        return
    spark = get_session("recs demo", verbose=verbose)
    write(generate(spark, SyntheticConfig()), folder, bad_share=0.01)
