"""Which rows of a training set make which batch: seed and epoch in, plan out, nothing read.

A training set is files of rows of one length each (its *bucket*); the number of files of a bucket
is a multiple of the number of *lanes*. A lane is a stream of rows, and a batch takes as many rows
of each lane. Ranks share the lanes out, so that a rank reads only its own files, and the batches
of all ranks together are the same whatever their number.

What is held is a number a file and one a step; the order of a file's rows is drawn when the file
is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

# What a random generator is for; no two purposes draw the same numbers.
_DEAL, _STEPS, _ROWS = range(3)

#: Lengths of neighbouring buckets differ by this factor, down to the shortest.
_RATIO, _SHORTEST = 2**0.5, 8


def lengths_up_to(longest: int) -> list[int]:
    """Return the lengths that files may have, ascending.

    >>> lengths_up_to(50)
    [9, 12, 18, 25, 35, 50]
    """
    count = 1 + max(0, int(np.floor(np.log(longest / _SHORTEST) / np.log(_RATIO))))
    return sorted({round(longest / _RATIO**n) for n in range(count)})


class File(NamedTuple):
    """A file of a training set: its name, rows, and the length of their arrays."""

    name: str
    rows: int
    length: int


class Slice(NamedTuple):
    """Rows ``start`` to ``stop`` (exclusive) of a file, counted in the epoch's order of its rows.

    ``place`` is the place of the first of them in the batch.
    """

    file: int
    start: int
    stop: int
    place: int


class Step(NamedTuple):
    """A batch as one rank reads it: ``length`` of the arrays, and what of which files.

    Places of the batch that no slice fills stay empty.
    """

    number: int
    length: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Plan:
    """The batches of every epoch.

    Parameters
    ----------
    files
        Of the training set.
    lanes
        Lanes of the training set; divides ``batch_size`` and the files of each length.
    batch_size
        Rows of a batch over all ranks.
    seed
        Another seed, another order.
    shuffle
        False reads files and rows in the order they have, the same in every epoch.

    Raises
    ------
    ValueError
        If the lanes do not divide the batch size or the files of a length.
    """

    files: Sequence[File]
    lanes: int
    batch_size: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.batch_size % self.lanes:
            raise ValueError(
                f"a batch of {self.batch_size} rows cannot be shared by {self.lanes} lanes: give a "
                f"batch_size that is a multiple of {self.lanes}, or export with fewer lanes"
            )
        for length, members in self._buckets():
            if len(members) % self.lanes:
                raise ValueError(
                    f"{len(members)} files of length {length} cannot be shared by {self.lanes} "
                    "lanes: export the training set again"
                )

    def steps(
        self, epoch: int, rank: int = 0, num_ranks: int = 1, start: int = 0
    ) -> Iterator[Step]:
        """Return the steps of an epoch from ``start`` on, as ``rank`` reads them.

        Raises
        ------
        ValueError
            If the ranks cannot share the lanes out.
        """
        if self.lanes % num_ranks:
            raise ValueError(
                f"{self.lanes} lanes cannot be shared by {num_ranks} processes: give export.lanes "
                "as a multiple of the processes"
            )
        buckets = self._deal(epoch)
        order = np.repeat(np.arange(len(buckets)), [steps for _, _, steps in buckets])
        if self.shuffle:
            self._generator(_STEPS, epoch).shuffle(order)
        done = np.zeros(len(buckets), np.int64)
        own = range(rank, self.lanes, num_ranks)
        for number, bucket in enumerate(order.tolist()):
            step = int(done[bucket])
            done[bucket] += 1
            if number < start:
                continue
            length, lanes, _ = buckets[bucket]
            slices = tuple(cut for lane in own for cut in self._cut(lanes[lane], lane, step))
            yield Step(number, length, slices)

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch, the same for every rank."""
        return sum(steps for _, _, steps in self._deal(epoch))

    def order(self, epoch: int, file: int) -> np.ndarray:
        """Return int64[rows]: the rows of a file in the epoch's order."""
        rows = self.files[file].rows
        if not self.shuffle:
            return np.arange(rows)
        return self._generator(_ROWS, epoch, file).permutation(rows)

    def _deal(self, epoch: int) -> list[tuple[int, list[_Lane], int]]:
        """Return each bucket's length, the files of each of its lanes, and its steps."""
        dealt = []
        for length, members in self._buckets():
            if self.shuffle:
                members = self._generator(_DEAL, epoch, length).permutation(members)
            lanes = [
                _Lane.of(members[n :: self.lanes].tolist(), self.files) for n in range(self.lanes)
            ]
            longest = max(lane.bounds[-1] for lane in lanes)
            dealt.append((length, lanes, -(-longest // self._rows_a_lane)))
        return dealt

    def _buckets(self) -> list[tuple[int, np.ndarray]]:
        lengths = np.array([file.length for file in self.files], np.int64)
        return [(int(length), np.flatnonzero(lengths == length)) for length in np.unique(lengths)]

    @property
    def _rows_a_lane(self) -> int:
        return self.batch_size // self.lanes

    def _cut(self, lane: _Lane, number: int, step: int) -> Iterator[Slice]:
        """Return what of a lane's files a step of its bucket takes."""
        wanted = self._rows_a_lane
        first, last = step * wanted, min((step + 1) * wanted, lane.bounds[-1])
        at = bisect_right(lane.bounds, first) - 1
        while first < last:
            begin, end = lane.bounds[at], lane.bounds[at + 1]
            stop = min(last, end)
            place = number * wanted + first - step * wanted
            if stop > first:
                yield Slice(lane.files[at], first - begin, stop - begin, place)
            first, at = stop, at + 1

    def _generator(self, purpose: int, epoch: int, which: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed % 2**64, purpose, epoch, which])


class _Lane(NamedTuple):
    """The files of a lane, and the running sum of their rows, from 0."""

    files: list[int]
    bounds: list[int]

    @classmethod
    def of(cls, members: list[int], files: Sequence[File]) -> _Lane:
        return cls(members, [0, *accumulate(files[member].rows for member in members)])
