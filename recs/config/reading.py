"""YAML by its core schema (1.2), and by the kinds of the settings.

Only ``true`` and ``false`` are truth values, and there are no dates and no octal numbers but
``0o17``. Where a text is needed it is taken as it is written, whatever else it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from recs.config.errors import ConfigError
from recs.config.kinds import below, is_text, may_be_none

_TAG = "tag:yaml.org,2002:"
_NULL, _TEXT, _MERGE = f"{_TAG}null", f"{_TAG}str", f"{_TAG}merge"
_LIST, _MAPPING = f"{_TAG}seq", f"{_TAG}map"


def _whole(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _fraction(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


#: Values that are no texts: their form, and how they are read.
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    _NULL: (re.compile(r"(null|Null|NULL|~|)\Z"), lambda text: None),
    f"{_TAG}bool": (
        re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"),
        lambda text: text.lower() == "true",
    ),
    f"{_TAG}int": (re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), _whole),
    f"{_TAG}float": (
        re.compile(
            r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
        ),
        _fraction,
    ),
}


class _Loader(yaml.SafeLoader):
    """Finds the core schema's values, and ``<<``, among what stands without quotes."""

    yaml_implicit_resolvers: dict[str, Any] = {}


for _tag, (_form, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _form, None)
_Loader.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), ["<"])


def read_yaml(text: str, kind: Any) -> Any:
    """Return what a file's text says that holds a kind of settings.

    Raises
    ------
    yaml.YAMLError
        If it is no YAML.
    ConfigError
        If a key is no text or is given twice; to come after the name of the file.
    """
    root = _compose(text)
    if isinstance(root, yaml.MappingNode):
        # A section all of whose keys are commented out is not there.
        root.value = [(key, value) for key, value in root.value if value.tag != _NULL]
    return _read(root, kind)


def read_override(text: str, kind: Any, key: str) -> Any:
    """Return the value that an override gives a key of a kind: YAML, or a text as it is written.

    Raises
    ------
    yaml.YAMLError, ConfigError
        As :func:`read_yaml`; the latter to come after the override.
    """
    if is_text(kind) and _is_plain(text, kind):
        return text
    return _read(_compose(text, (key,)), kind)


def one_line(error: yaml.YAMLError) -> str:
    """Return what is wrong, and where, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark, context = error.problem_mark, f"{error.context}, " if error.context else ""
    return f"{context}{error.problem} (line {mark.line + 1}, column {mark.column + 1})"


def _is_plain(text: str, kind: Any) -> bool:
    """Tell whether a text is no list, no null and not in quotes, where these can be."""
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError:
        return True
    if isinstance(node, yaml.SequenceNode):
        return below(kind, 0) is kind
    if not isinstance(node, yaml.ScalarNode):
        return True
    # On a command line ~ is the home folder.
    is_null = node.tag == _NULL and node.value != "~" and may_be_none(kind)
    is_quoted = node.style in ("'", '"') and text[0] == text[-1] == node.style
    return not (is_null or is_quoted)


def _compose(text: str, parents: tuple[str, ...] = ()) -> yaml.Node | None:
    """Return the nodes of a YAML text that stands under the key that ``parents`` make."""
    root = yaml.compose(text, _Loader)
    if root is not None:
        _check_keys(root, parents, set())
    return root


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
        if key.tag == _MERGE:
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f": line {line}: a key is a list or a mapping: put it in quotes")
        name = ".".join((*parents, key.value))
        if key.value in lines:
            raise ConfigError(
                f": key {name!r} is given twice (lines {lines[key.value]} and {line})"
            )
        lines[key.value] = line
        _check_keys(value, (*parents, key.value), checked)


def _read(node: yaml.Node | None, kind: Any, above: tuple[yaml.Node, ...] = ()) -> Any:
    """Return what a node below others says that stands for a kind of value."""
    if node is None:
        return None
    if any(node is other for other in above):
        raise _error("a value holds itself", node)
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode) and node.tag == _LIST:
        return [_read(value, below(kind, n), above) for n, value in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == _MAPPING:
        yaml.constructor.SafeConstructor().flatten_mapping(node)  # what << merges
        return {key.value: _read(value, below(kind, key.value), above) for key, value in node.value}
    if isinstance(node, yaml.ScalarNode) and node.tag == _TEXT:
        return node.value
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
        raise _error(f"there is no tag {node.tag}", node)
    form, read = _SCALARS[node.tag]
    if is_text(kind) and not (node.tag == _NULL and (may_be_none(kind) or not node.value)):
        return node.value
    if not form.match(node.value):  # by its tag alone
        raise _error(f"{node.value!r} is not of tag {node.tag}", node)
    return read(node.value)


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
