"""YAML, of which what would be taken in silence is refused."""

from __future__ import annotations

from typing import Any

import yaml

from recs.config.errors import ConfigError


def read_yaml(text: str, parents: tuple[str, ...] = ()) -> Any:
    """Return what a YAML text says, under the key that ``parents`` make.

    Raises
    ------
    yaml.YAMLError
        If it is no YAML.
    ConfigError
        If a key is no text or is given twice; to come after the name of what was read.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_keys(root, parents, set())
        return loader.construct_document(root)
    except ValueError as error:  # of what looks like a date
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, parents: tuple[str, ...], checked: set[int]) -> None:
    """Refuse keys that are no texts, and keys given twice, of which YAML takes the last."""
    if id(node) in checked:  # *name stands for it once more
        return
    checked.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _check_keys(value, (*parents, str(number)), checked)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            kind = key.tag.rpartition(":")[2]
            shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "this"
            raise ConfigError(f": line {line}: {shown} is a key of type {kind}: put it in quotes")
        name = ".".join((*parents, key.value))
        if key.value in lines:
            raise ConfigError(
                f": key {name!r} is given twice (lines {lines[key.value]} and {line})"
            )
        lines[key.value] = line
        _check_keys(value, (*parents, key.value), checked)


def one_line(error: yaml.YAMLError) -> str:
    """Return what is wrong, and where, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark, context = error.problem_mark, f"{error.context}, " if error.context else ""
    return f"{context}{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
