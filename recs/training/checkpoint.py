"""Checkpoints: whole or not there, and known to be so by the hashes of their files.

A checkpoint is a folder of safetensors files and a manifest, which is written last and names every
file with its SHA-256; then the file ``latest`` beside the folders names it. A torn or damaged one
is passed over for the newest before it.

Of sharded tables (:mod:`recs.nn.tables`) each process writes its rows to files of its own, such as
``weights.0-of-2.safetensors``. Any number of processes goes on from them: as many as there were
read a file each, others all of them, one after the other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor

from recs.errors import UserError
from recs.storage import filesystem, join, read_file, remove_tree, write_file, writing

log = logging.getLogger("recs")

_MANIFEST, _LATEST = "manifest.json", "latest"
_NAME = re.compile(r"^step-(\d+)$")
_SHARD = re.compile(r"^(.+)\.(\d+)-of-(\d+)$")
#: What safetensors call the types of numbers that networks and optimizers have.
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Groups = Mapping[str, Mapping[str, Tensor]]


class CheckpointError(UserError):
    """A folder whose files are not those that its manifest names."""


class Streamed(NamedTuple):
    """A tensor whose rows are made while it is written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Iterable[Tensor]


@dataclass(frozen=True)
class Shard:
    """Which of how many processes has the rows."""

    rank: int = 0
    count: int = 1


_ALONE = Shard()


@dataclass(frozen=True)
class Checkpoint:
    """What is kept: named groups of tensors, and what else there is to say, as JSON.

    Attributes
    ----------
    tensors
        The same on all processes.
    state
        As JSON.
    rows
        This process's rows of sharded tables, and of what goes with them; groups as of ``tensors``.
    """

    tensors: Groups
    state: dict[str, Any]
    rows: Groups = field(default_factory=dict)


def write_folder(
    folder: str,
    tensors: Mapping[str, Mapping[str, Tensor | Streamed]],
    documents: Mapping[str, Any],
    written: Mapping[str, str] | None = None,
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
    written
        Hashes of files that others have written there.
    """
    hashes = write_tensors(folder, tensors) | dict(written or {})
    for name, document in documents.items():
        content = json.dumps(document, indent=1, sort_keys=True).encode()
        hashes[f"{name}.json"] = hashlib.sha256(content).hexdigest()
        write_file(join(folder, f"{name}.json"), content)
    manifest = json.dumps({"sha256": hashes}, indent=1).encode()
    write_file(join(folder, _MANIFEST), manifest)


def write_tensors(
    folder: str, tensors: Mapping[str, Mapping[str, Tensor | Streamed]]
) -> dict[str, str]:
    """Write groups of tensors as safetensors files, and return the hash of each.

    At no time is a group copied whole.
    """
    hashes = {}
    for group, members in tensors.items():
        name = f"{group}.safetensors"
        hashed = hashlib.sha256()
        with writing(join(folder, name)) as file:
            for content in serialized(members):
                hashed.update(content)
                file.write(content)
        hashes[name] = hashed.hexdigest()
    return hashes


def serialized(tensors: Mapping[str, Tensor | Streamed]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file: the length of its header, the header, and the tensors' bytes."""
    header: dict[str, Any] = {}
    end = 0
    # The widest types first, so that each lies at a multiple of its width, as safetensors' own do.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, tensor in ordered:
        shape = list(tensor.shape)
        begin, end = end, end + tensor.dtype.itemsize * torch.Size(shape).numel()
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for _, tensor in ordered:
        for block in tensor.blocks if isinstance(tensor, Streamed) else [tensor]:
            flat = block.detach().cpu().contiguous().view(-1)
            yield flat.view(torch.uint8).numpy().data


def read_folder(
    folder: str, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors and documents of a folder that :func:`write_folder` wrote.

    Parameters
    ----------
    folder
        URI.
    wanted
        Which files are read, by their names without the ending.

    Raises
    ------
    CheckpointError
        If the manifest is missing or a file is not as it says.
    """
    tensors, documents = {}, {}
    hashes = _hashes(folder)
    for name, expected in hashes.items():
        stem, _, kind = name.rpartition(".")
        if not wanted(stem):
            continue
        content = read_file(join(folder, name)) or b""
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(f"{name} of {folder} is not what {_MANIFEST} says: it is damaged")
        if kind == "json":
            documents[stem] = json.loads(content)
        else:
            tensors[stem] = load(content)
    return tensors, documents


def _hashes(folder: str) -> dict[str, str]:
    """Return what the manifest says: the hash of each file."""
    manifest = read_file(join(folder, _MANIFEST))
    if manifest is None:
        raise CheckpointError(f"{folder} has no {_MANIFEST}: it was never finished")
    try:
        return dict(json.loads(manifest)["sha256"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{_MANIFEST} of {folder} is damaged: {error}") from error


def save_checkpoint(
    folder: str,
    step: int,
    checkpoint: Checkpoint,
    keep: int,
    shard: Shard = _ALONE,
    collect: Callable[[dict[str, str]], dict[str, str]] = lambda hashes: hashes,
) -> None:
    """Write the checkpoint of a step under ``folder``; keep it and the newest before it, ``keep``.

    Later ones are damaged, or training would have gone on from them: they are removed.

    Parameters
    ----------
    shard
        Which process this is. All of them call this; the first writes what they have in common.
    collect
        Joins what all processes give.
    """
    place = join(folder, f"step-{step}")
    own = {
        f"{group}.{shard.rank}-of-{shard.count}": rows for group, rows in checkpoint.rows.items()
    }
    hashes = collect(write_tensors(place, own))
    if shard.rank > 0:
        return
    write_folder(place, checkpoint.tensors, {"state": checkpoint.state}, hashes)
    write_file(join(folder, _LATEST), f"step-{step}".encode())
    kept = [found for found in _steps(folder) if found <= step][:keep]
    for found in _steps(folder):
        if found not in kept:
            remove_tree(join(folder, f"step-{found}"))


def load_checkpoint(
    folder: str, shard: Shard = _ALONE, gather: Callable[[Any], list[Any]] = lambda value: [value]
) -> Checkpoint | None:
    """Return the latest checkpoint under ``folder``, or the newest that is whole.

    None where there is none.

    Parameters
    ----------
    shard
        Which process this is; all of them call this.
    gather
        What all processes give: a checkpoint that is damaged or absent for one is passed over by
        all.
    """
    latest = (read_file(join(folder, _LATEST)) or b"").decode(errors="replace")
    # The first process's list goes for all: a store may not show all of them the same yet.
    steps, *_ = gather(sorted(_steps(folder), key=lambda step: f"step-{step}" != latest))
    for step in steps:
        found = None
        try:
            found = _read(join(folder, f"step-{step}"), shard)
        except CheckpointError as error:
            log.warning("passed over", extra={"checkpoint": step, "reason": str(error)})
        if all(gather(found is not None)):
            return found
    return None


def last_step(folder: str) -> int:
    """Return the last step that has a checkpoint under ``folder``, whole or not; 0 without one."""
    return max(_steps(folder), default=0)


def _read(folder: str, shard: Shard) -> Checkpoint:
    shards: dict[str, list[tuple[str, Shard]]] = {}
    for name in _hashes(folder):
        stem = name.rpartition(".")[0]
        if match := _SHARD.match(stem):
            written = Shard(int(match.group(2)), int(match.group(3)))
            shards.setdefault(match.group(1), []).append((stem, written))
    tensors, documents = read_folder(folder, lambda stem: not _SHARD.match(stem))
    rows = {group: _own_rows(folder, files, shard) for group, files in shards.items()}
    return Checkpoint(tensors, documents["state"], rows)


def _own_rows(folder: str, files: list[tuple[str, Shard]], shard: Shard) -> dict[str, Tensor]:
    """Return the rows of a process, from the files of however many; id i is of process i mod R."""

    def read(wanted: str) -> dict[str, Tensor]:
        return read_folder(folder, lambda stem: stem == wanted)[0][wanted]

    for stem, written in files:
        if written == shard:
            return read(stem)
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for stem, written in files:
        for name, tensor in read(stem).items():
            ids = torch.arange(len(tensor)) * written.count + written.rank
            mine = ids % shard.count == shard.rank
            kept.setdefault(name, []).append((ids[mine], tensor[mine]))
    joined = {}
    for name, parts in kept.items():
        order = torch.argsort(torch.cat([ids for ids, _ in parts]))
        joined[name] = torch.cat([rows for _, rows in parts])[order]
    return joined


def _steps(folder: str) -> list[int]:
    """Return the steps of the checkpoints under ``folder``, newest first."""
    fs, path = filesystem(folder)
    if not fs.exists(path):
        return []
    names = (entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))
    found = (_NAME.match(name) for name in names)
    return sorted((int(match.group(1)) for match in found if match), reverse=True)
