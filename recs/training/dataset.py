"""A training set on storage that all hosts reach: Parquet files and the manifest that names them.

Rows are users' histories as arrays of one length a file, padded on the left. With them go all items
that each user has wanted, as a matrix that ranks map into memory (:mod:`recs.arrays.matrix`). The
manifest is written last: a folder without one is no training set. Nothing here needs Spark or
torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from recs.arrays.files import load_array
from recs.arrays.matrix import CsrFiles
from recs.errors import UserError
from recs.storage import join, read_file, write_file
from recs.training.plan import File

FORMAT = 3

#: Columns of the files that hold a number a row; beside them are ``schema.SEQUENCE_ARRAYS``.
NUMBERS = ("user_id", "length", "target")

#: Folder of the matrix of users and the items that they have wanted.
POSITIVES_FOLDER = "positives"

_MANIFEST = "manifest.json"


class TrainingSetError(UserError):
    """A folder that holds no training set, or one of another format."""


class Positives(NamedTuple):
    """Items that users have wanted: those of user u are ``items[offsets[u]:offsets[u + 1]]``.

    ``offsets`` int64[M+1]; ``items`` int32[nnz], ascending within a user.
    """

    offsets: np.ndarray
    items: np.ndarray

    def of(self, users: np.ndarray) -> Positives:
        """Return those of these users (int64[b]; -1 has none), in their order."""
        known = users >= 0
        at = np.where(known, users, 0)
        starts = self.offsets[at]
        lengths = np.where(known, self.offsets[at + 1] - starts, 0)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        places = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Positives(offsets, self.items[places])


@dataclass(frozen=True)
class Manifest:
    """What a training set is.

    Attributes
    ----------
    tables
        Delta version of each table that it was made of.
    num_users, num_items, num_event_types
        Sizes of the vocabularies.
    length
        The longest history that it holds.
    lanes
        See :class:`recs.training.plan.Plan`.
    positive_event_types
        Numbers of the event types that are wanted; items of other events are never asked for.
    schema_hash
        Of the files' columns and their types.
    train_events
        Name of the file of int64[N]: positive training events of each item.
    recommendable
        Name of the file of bool[N]: items that may be recommended.
    parts
        Name of each part to its files.
    given_nothing
        Users with a target of validation and no history to be given anything for: they count as 0.
    """

    tables: dict[str, int]
    num_users: int
    num_items: int
    num_event_types: int
    length: int
    lanes: int
    positive_event_types: list[int]
    schema_hash: str
    train_events: str
    recommendable: str
    parts: dict[str, list[File]]
    given_nothing: int
    format: int = FORMAT


@dataclass(frozen=True)
class TrainingSet:
    """A written training set."""

    folder: str
    manifest: Manifest

    def path(self, name: str) -> str:
        """Return the URI of one of its files."""
        return join(self.folder, name)

    def positives(self) -> Positives:
        """Map all users' positives into memory."""
        matrix = CsrFiles(self.path(POSITIVES_FOLDER)).open()
        return Positives(matrix.indptr, matrix.indices)

    def recommendable(self) -> np.ndarray:
        """Return bool[N]: items that may be recommended, drawn, and ranked."""
        return load_array(self.path(self.manifest.recommendable))

    def train_events(self) -> np.ndarray:
        """Return int64[N]: positive training events of each item."""
        return load_array(self.path(self.manifest.train_events))


def write_manifest(folder: str, manifest: Manifest) -> TrainingSet:
    """Make the folder a training set; its files are all there."""
    write_file(join(folder, _MANIFEST), json.dumps(asdict(manifest), indent=1).encode())
    return TrainingSet(folder, manifest)


def open_training_set(folder: str) -> TrainingSet:
    """Return the training set in a folder.

    Raises
    ------
    TrainingSetError
        If there is none, or it was written by another version of recs.
    """
    content = read_file(join(folder, _MANIFEST))
    if content is None:
        raise TrainingSetError(
            f"{folder} holds no training set ({_MANIFEST} is missing): run the stage export first, "
            "under another run_id if this one's was removed by later ones"
        )
    values: dict[str, Any] = json.loads(content)
    if values.get("format") != FORMAT:
        raise TrainingSetError(
            f"training set {folder} has format {values.get('format')}, this recs reads {FORMAT}: "
            "run the stage export again"
        )
    values["parts"] = {
        part: [File(*file) for file in files] for part, files in values["parts"].items()
    }
    return TrainingSet(folder, Manifest(**values))
