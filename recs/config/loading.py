"""A configuration from a file and overrides."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import ValidationError

from recs.config.config import Config
from recs.config.errors import ConfigError
from recs.config.explaining import explain
from recs.config.kinds import below
from recs.config.reading import one_line, read_override, read_yaml
from recs.storage import absolute, filesystem, read_file, redact


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply ``key=value`` overrides (dotted keys), and check it all.

    Parameters
    ----------
    path
        A local path, or a URI of any storage.
    overrides
        Settings over those of the file.

    Raises
    ------
    ConfigError
        Naming the file, the key and, for an unknown key, the nearest known one.
    StorageError
        If the file is a URI that recs will not open.
    """
    file = redact(str(path))
    try:
        values = read_yaml(_text(absolute(str(path))), Config) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"config {file} is not YAML: {one_line(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"config {file}{error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"config {file} must hold keys and values, it holds {type(values).__name__}"
        )
    values.setdefault("name", PurePosixPath(file).stem)
    for override in overrides or []:
        _apply(values, override)
    if "root" not in values:
        raise ConfigError("no place for the tables is given: add root=FOLDER (local, s3a://, …)")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(file, error)) from error
    return config


def _text(uri: str) -> str:
    """Return the text of a file; where there is none ConfigError, to come after its name."""
    fs, path = filesystem(uri)
    if fs.isdir(path):
        raise ConfigError(" is a folder: give a YAML file in it")
    content = read_file(uri)
    if content is None:
        raise ConfigError(" does not exist")
    try:
        # Most of UTF-16 without a mark at its beginning is UTF-8 too, with zeros in it.
        if b"\0" not in content:
            return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    raise ConfigError(" is not UTF-8: save it as UTF-8")


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must have the form key=value, as in slim.l1=2")
    *parents, last = key.split(".")
    node: Any = values
    kind: Any = Config
    for parent in parents:
        node = _child(node, parent) if isinstance(node, dict) else _element(node, parent, key)
        kind = below(kind, parent)
    if not isinstance(node, dict):
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} holds no keys")
    try:
        node[last] = read_override(text, below(kind, last), key)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: {text!r} is no YAML; give a number, a word or [a, list]"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"override {override!r}{error}") from error


def _child(node: dict[str, Any], key: str) -> Any:
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _element(node: Any, index: str, key: str) -> Any:
    if isinstance(node, list) and index.isdigit() and int(index) < len(node):
        return node[int(index)]
    raise ConfigError(f"override {key!r}: there is no {index!r}")
