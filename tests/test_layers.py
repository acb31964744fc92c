"""Imports within recs point one way: each room knows those that it is declared to know."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "recs"

#: What each module or package directly below recs imports of the others.
KNOWS = {
    "__init__": set(),
    "errors": set(),
    "settings": set(),
    "schema": set(),
    "daemon": set(),
    "storage": {"errors"},
    "session": {"errors", "storage"},
    "arrays": {"errors", "session", "storage"},
    "sampling": {"arrays", "errors"},
    "delta_log": {"storage"},
    "lake": {"delta_log", "errors", "schema", "session", "storage"},
    "attempts": {"errors", "lake", "storage"},
    "usage": {"__init__"},
    "ledger": {"lake", "schema"},
    "runs": {"__init__", "attempts", "errors", "lake", "ledger", "storage", "usage"},
    "readers": {"lake", "ledger", "runs", "schema", "storage"},
    "nn": {"errors", "sampling", "schema", "settings"},
    "training": {"arrays", "errors", "nn", "schema", "settings", "storage"},
    "config": {"errors", "nn", "schema", "settings", "storage", "training"},
    "data": {"arrays", "config", "errors", "sampling", "schema", "session", "storage"},
    "guess": {"config", "errors", "storage"},
    "slim": {"arrays", "errors", "session", "storage"},
    "ranking": {"arrays", "errors", "sampling", "schema"},
    "evaluation": {"arrays", "errors", "ranking", "sampling", "schema"},
    "report": {"evaluation", "storage"},
}


def _imported(path: Path) -> set[str]:
    """Return the rooms of recs that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            assert node.level == 0, f"{path}: imports are absolute"
    parts = [name.split(".") for name in names if name.split(".")[0] in ("recs", "pipelines")]
    assert all(part[0] == "recs" for part in parts), f"{path} imports pipelines"
    return {part[1] if len(part) > 1 and part[1] in KNOWS else "__init__" for part in parts}


@pytest.mark.parametrize("room", KNOWS)
def test_a_room_imports_what_it_is_declared_to_know(room: str) -> None:
    paths = sorted((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
    for path in paths:
        wrong = _imported(path) - KNOWS[room] - {room}
        assert not wrong, f"{path.relative_to(ROOT.parent)} imports {', '.join(sorted(wrong))}"


def test_every_room_is_declared_and_none_knows_itself_by_way_of_others() -> None:
    rooms = {path.stem for path in ROOT.glob("*.py")}
    rooms |= {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms == set(KNOWS)
    assert len(list(TopologicalSorter(KNOWS).static_order())) == len(KNOWS)
