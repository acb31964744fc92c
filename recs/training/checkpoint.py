"""Checkpoints: whole or not there, and known to be so by the hashes of their files.

A checkpoint is a folder of safetensors files and a manifest, which is written last and names every
file with its SHA-256. A torn or damaged one is passed over for the newest before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from recs.storage import filesystem, join, read_file, remove_tree, write_file

log = logging.getLogger("recs")

_MANIFEST = "manifest.json"
_NAME = re.compile(r"^step-(\d+)$")


class CheckpointError(ValueError):
    """A folder whose files are not those that its manifest names."""


@dataclass(frozen=True)
class Checkpoint:
    """What is kept: named groups of tensors, and what else there is to say, as JSON."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def write_folder(
    folder: str, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]
) -> None:
    """Write groups of tensors and JSON documents as files, and last the manifest of their hashes.

    Parameters
    ----------
    folder
        URI; what is there already is replaced when the new manifest is.
    tensors
        Name of a file, without its ending, to tensors by name.
    documents
        Name of a file, without its ending, to what it says.
    """
    contents = {f"{name}.safetensors": _bytes(group) for name, group in tensors.items()}
    for name, document in documents.items():
        contents[f"{name}.json"] = json.dumps(document, indent=1, sort_keys=True).encode()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[_MANIFEST] = json.dumps({"sha256": hashes}, indent=1).encode()
    for name, content in contents.items():  # the manifest is the last
        write_file(join(folder, name), content)


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})


def read_folder(folder: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors and documents of a folder that :func:`write_folder` wrote.

    Raises
    ------
    CheckpointError
        If the manifest is missing or a file is not as it says.
    """
    manifest = read_file(join(folder, _MANIFEST))
    if manifest is None:
        raise CheckpointError(f"{folder} has no {_MANIFEST}: it was never finished")
    try:
        hashes = json.loads(manifest)["sha256"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{_MANIFEST} of {folder} is damaged: {error}") from error
    tensors, documents = {}, {}
    for name, expected in hashes.items():
        content = read_file(join(folder, name)) or b""
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(f"{name} of {folder} is not what {_MANIFEST} says: it is damaged")
        stem, _, kind = name.rpartition(".")
        if kind == "json":
            documents[stem] = json.loads(content)
        else:
            tensors[stem] = load(content)
    return tensors, documents


def save_checkpoint(folder: str, step: int, checkpoint: Checkpoint, keep: int) -> None:
    """Write the checkpoint of a step under ``folder``, and remove all but the newest ``keep``."""
    write_folder(join(folder, f"step-{step}"), checkpoint.tensors, {"state": checkpoint.state})
    for old in _steps(folder)[keep:]:
        remove_tree(join(folder, f"step-{old}"))


def load_checkpoint(folder: str) -> Checkpoint | None:
    """Return the newest checkpoint under ``folder`` that is whole; None where there is none."""
    for step in _steps(folder):
        try:
            tensors, documents = read_folder(join(folder, f"step-{step}"))
        except CheckpointError as error:
            log.warning("passed over", extra={"checkpoint": step, "reason": str(error)})
            continue
        return Checkpoint(tensors, documents["state"])
    return None


def _steps(folder: str) -> list[int]:
    """Return the steps of the checkpoints under ``folder``, newest first."""
    fs, path = filesystem(folder)
    if not fs.exists(path):
        return []
    names = (entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))
    found = (_NAME.match(name) for name in names)
    return sorted((int(match.group(1)) for match in found if match), reverse=True)
