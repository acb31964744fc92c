"""A trained network as a folder: weights, what they are of, and the hashes of both.

It is read without Spark and without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recs.errors import UserError
from recs.nn.models import build
from recs.nn.network import SequenceNetwork, Sizes
from recs.nn.tables import sharded
from recs.training.checkpoint import Streamed, read_folder, serialized, write_folder

FORMAT = 1


class ModelFolderError(UserError):
    """A folder whose model this version of recs cannot read."""


def save_model(
    folder: str,
    network: SequenceNetwork,
    *,
    name: str,
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
) -> None:
    """Write a network, the same folder however its tables are held.

    Where they are sharded, all processes call this, and the first writes the rows of all, a block
    at a time.

    Parameters
    ----------
    name, settings
        As :func:`recs.nn.models.build` takes them.
    versions
        What it is of: versions of the vocabularies and of the training set.
    """
    tensors: dict[str, Tensor | Streamed] = dict(network.state_dict())
    tables = network.sizes.tables
    for key, num in sharded(network).items():
        own = network.get_parameter(key).detach()
        tensors[key] = Streamed(own.dtype, (num, *own.shape[1:]), tables.blocks(own, num))
    if tables.rank > 0:
        for _ in serialized(tensors):  # sends this process's rows
            pass
        return
    config = {
        "format": FORMAT,
        "name": name,
        "settings": dict(settings),
        "sizes": network.sizes.of_data(),
        "versions": dict(versions),
    }
    write_folder(folder, {"weights": tensors}, {"config": config})


def load_model(folder: str) -> tuple[SequenceNetwork, dict[str, str]]:
    """Return the network of a folder, on the CPU and in evaluation mode, and its versions.

    Raises
    ------
    recs.training.checkpoint.CheckpointError
        If the folder is unfinished or damaged.
    ModelFolderError
        If it has another format.
    """
    tensors, documents = read_folder(folder)
    config = documents["config"]
    if config["format"] != FORMAT:
        raise ModelFolderError(
            f"model {folder} has format {config['format']}, this recs reads {FORMAT}: train it "
            "again, or install the recs that wrote it"
        )
    network = build(config["name"], Sizes(**config["sizes"]), config["settings"])
    network.load_state_dict(tensors["weights"])
    return network.eval(), config["versions"]
