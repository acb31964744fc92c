"""A trained network as a folder: weights, what they are of, and the hashes of both.

It is read without Spark and without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recs.nn.models import build
from recs.nn.network import SequenceNetwork, Sizes
from recs.training.checkpoint import read_folder, write_folder

FORMAT = 1


class ModelFolderError(ValueError):
    """A folder whose model this version of recs cannot read."""


def save_model(
    folder: str,
    network: SequenceNetwork,
    *,
    name: str,
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
) -> None:
    """Write a network.

    Parameters
    ----------
    name, settings
        As :func:`recs.nn.models.build` takes them.
    versions
        What it is of: versions of the vocabularies and of the training set.
    """
    config = {
        "format": FORMAT,
        "name": name,
        "settings": dict(settings),
        "sizes": network.sizes._asdict(),
        "versions": dict(versions),
    }
    write_folder(folder, {"weights": network.state_dict()}, {"config": config})


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
