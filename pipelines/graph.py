"""The order of stages, which follows from the tables that they read and write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.job import Stage
from recs.config import ConfigError


def in_order(stages: Iterable[Stage]) -> list[Stage]:
    """Return stages such that each comes after those whose tables it reads.

    Those that may come in any order stay as they were given.
    """
    left, ordered = list(stages), []
    while left:
        free = next(stage for stage in left if not _before(stage, left))
        ordered.append(free)
        left.remove(free)
    return ordered


def _before(stage: Stage, others: Sequence[Stage]) -> list[Stage]:
    """Return those of the others that write what a stage reads."""
    reads = set(stage.reads) - set(stage.writes)
    return [other for other in others if other is not stage and reads & set(other.writes)]


def select(
    stages: Sequence[Stage],
    names: Sequence[str] = (),
    start: str | None = None,
    end: str | None = None,
) -> list[Stage]:
    """Return some of the stages, in their order.

    Parameters
    ----------
    names
        Stages, as ``recommend``, which stands for those of all models, or ``recommend/slim``; all
        by default.
    start
        Only this stage and what comes of its tables.
    end
        Only this stage and what its tables come of.

    Raises
    ------
    ConfigError
        If there is no such stage, or none is left.
    """
    chosen = list(stages)
    if names:
        wanted = [stage for name in names for stage in _named(name, stages)]
        chosen = [stage for stage in chosen if stage in wanted]
    if start is not None:
        after = _reached(_named(start, stages), stages, forward=True)
        chosen = [stage for stage in chosen if stage in after]
    if end is not None:
        before = _reached(_named(end, stages), stages, forward=False)
        chosen = [stage for stage in chosen if stage in before]
    if not chosen:
        raise ConfigError("no stage is left: ask for less with --select, --from and --to")
    return chosen


def _named(name: str, stages: Sequence[Stage]) -> list[Stage]:
    found = [stage for stage in stages if name in (stage.name, stage.label)]
    if not found:
        labels = ", ".join(stage.label for stage in stages)
        raise ConfigError(f"no stage here is called {name!r}: they are {labels}")
    return found


def _reached(found: list[Stage], stages: Sequence[Stage], *, forward: bool) -> list[Stage]:
    """Return stages with all that come before them, or after."""
    reached = list(found)
    for stage in stages if forward else reversed(stages):
        follows = [
            other
            for other in reached
            if (_before(stage, [other]) if forward else _before(other, [stage]))
        ]
        if follows and stage not in reached:
            reached.append(stage)
    return reached
