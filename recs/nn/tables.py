"""Tables of items and users: whole on every process, or their rows sharded over all of them.

A table larger than one device is sharded: of N rows, R processes have N/R each, row i on process
i mod R. (In turn, not in blocks: ids often run by age or popularity, and the rows that are read
most would all be of one process.) A network makes its tables by :class:`Tables` and reads them by
ids, and gives losses the rows that its process has; what losses need of other processes' rows
goes through the methods here. So networks and losses are written once, and where tables are whole
all of this is the identity. TorchRec shards embeddings too, but knows no softmax over all items,
and brings FBGEMM; the exchange is a few lines over ``all_to_all``, which gloo and NCCL both have.

Gradients of sharded tables are the mean over processes, as DistributedDataParallel makes that of
all other parameters, from which they are to be left out. All processes make the same calls in the
same order, those with nothing to read too, and all scale their losses alike.

Shapes: N ids, R processes, n = N/R rows of a process, U different ids that are read, D the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

#: Rows that are drawn at once; a multiple of 16, see :meth:`ShardedTables.normal`.
_DRAWN = 2**16
#: Rows of each process that :meth:`ShardedTables.blocks` sends at once.
_SENT = 2**16
#: Gives each of some ids its row of a table of n rows: float[n, D] or float[n] to float[..., D] or
#: float[...].
Read = Callable[[Tensor], Tensor]


class Tables:
    """Tables that each process has whole, with dense gradients: n = N."""

    #: Whether a process has all rows, and may read rows that nobody asked for.
    whole = True
    #: Which of R processes this is, of those that rows are shared by.
    rank, count = 0, 1

    def num_rows(self, num: int) -> int:
        """Return n of a table of ``num`` rows."""
        return num

    def normal(self, num: int, dim: int, std: float) -> nn.Parameter:
        """Return float[n, dim], drawn by torch's generator: the same rows however they are held."""
        return nn.Parameter(nn.init.normal_(torch.empty(num, dim), std=std))

    def zeros(self, num: int) -> nn.Parameter:
        """Return float[n]."""
        return nn.Parameter(torch.zeros(num))

    def find(self, ids: Tensor) -> Read:
        """Return what reads the rows of ids, int64[...] of at least 0, from any table of them."""
        return lambda table: _take(table, ids)

    def read(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return float[..., D] for int64[...]; zeros where an id is negative."""
        found = F.embedding(ids.clamp(min=0), table)
        return found.masked_fill((ids < 0).unsqueeze(-1), 0.0)

    def local(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return int64[...] and bool[...]: the rows of ids here, and which ids are of this process.

        Of others the row is 0.
        """
        return ids, torch.ones_like(ids, dtype=torch.bool)

    # What follows has no gradients. M rows of this process meet those of all others.

    def lengths(self, length: int) -> list[int]:
        """Return the number that each process gave."""
        return [length]

    def gather(self, tensor: Tensor, lengths: list[int]) -> Tensor:
        """Return [ΣM, ...]: the rows of all processes, ``lengths`` of each."""
        return tensor

    def own(self, lengths: list[int]) -> slice:
        """Return which rows of :meth:`gather` are of this process."""
        return slice(0, lengths[0])

    def give_back(self, tensor: Tensor, lengths: list[int]) -> Tensor:
        """Return [M, ...]: this process's part of [ΣM, ...], summed over all processes."""
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes; ``tensor`` may be changed."""
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """Return the greatest of all processes; ``tensor`` may be changed."""
        return tensor

    def blocks(self, table: Tensor, num: int) -> Iterator[Tensor]:
        """Yield a table of ``num`` rows in the order of ids, some at a time, on process 0.

        Others send theirs, and yield empty blocks.
        """
        yield table


#: Tables that are not sharded.
WHOLE = Tables()


class ShardedTables(Tables):
    """Tables whose rows are shared by all processes; n = N/R, rounded up on the first ones.

    A process holds n·D numbers of a table, as many of each of its moments and, unless it is
    ``sparse``, of its gradient; and while it reads U different ids, their rows and those that
    others read of it, about as many. Of each batch of ids it sends and receives about U (R-1)/R
    ids of 8 bytes and as many rows of D numbers, and in the backward pass as many rows again.

    Parameters
    ----------
    rank, count
        Which of how many processes this is. One process has all rows and sends nothing.
    sparse
        Whether gradients of tables of vectors are sparse, of the rows that were read, instead of
        n·D numbers. Those of biases are dense.
    """

    whole = False

    def __init__(self, rank: int = 0, count: int = 1, sparse: bool = False) -> None:
        self.rank, self.count, self.sparse = rank, count, sparse

    def num_rows(self, num: int) -> int:
        return _num_rows(num, self.rank, self.count)

    def normal(self, num: int, dim: int, std: float) -> nn.Parameter:
        """Return float[n, dim]; every process draws all N rows, some at a time, and keeps its own.

        On CPUs torch draws sixteen numbers at a time, so that blocks of a multiple of that are
        drawn as the whole is; the last has what is left over too.
        """
        kept = torch.empty(self.num_rows(num), dim)
        blocks, at = max(1, num // _DRAWN), 0
        for first in range(0, blocks * _DRAWN, _DRAWN):
            size = _DRAWN if first < (blocks - 1) * _DRAWN else num - first
            drawn = nn.init.normal_(torch.empty(size, dim), std=std)
            own = drawn[(self.rank - first) % self.count :: self.count]
            kept[at : at + len(own)] = own
            at += len(own)
        return _table(kept, num)

    def zeros(self, num: int) -> nn.Parameter:
        return _table(torch.zeros(self.num_rows(num)), num)

    def find(self, ids: Tensor) -> Read:
        read, places = self._different(ids)
        return lambda table: _take(read(table), places)

    def read(self, table: Tensor, ids: Tensor) -> Tensor:
        # Padding is not asked for: a row that no event reads is not one to be updated.
        present = ids >= 0
        read, places = self._different(ids[present])
        rows = F.pad(read(table), (0, 0, 0, 1))  # the last, of zeros, stands for padding
        padding = len(rows) - 1
        at = torch.full_like(ids, padding).masked_scatter(present, places)
        return F.embedding(at, rows, padding_idx=padding)

    def _different(self, ids: Tensor) -> tuple[Read, Tensor]:
        """Return what reads the U rows of ids, and int64[...]: which of them is each id's."""
        # In the order of the processes that have them.
        keys, inverse = torch.unique(
            (ids % self.count << 32) | ids // self.count, return_inverse=True
        )
        counts = torch.bincount(keys >> 32, minlength=self.count)
        asked, answered = counts.tolist(), self._turned(counts).tolist()
        wanted = _exchange(keys & (2**32 - 1), asked, answered)

        def read(table: Tensor) -> Tensor:
            rows = _take(table, wanted, sparse=self.sparse)
            return _Exchange.apply(rows, answered, asked)

        return read, inverse

    def local(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        mine = ids % self.count == self.rank
        return torch.where(mine, ids // self.count, 0), mine

    def lengths(self, length: int) -> list[int]:
        return self._turned(torch.full((self.count,), length, device=_device())).tolist()

    def gather(self, tensor: Tensor, lengths: list[int]) -> Tensor:
        everywhere = tensor.repeat(self.count, *[1] * (tensor.dim() - 1))
        return _exchange(everywhere, [len(tensor)] * self.count, lengths)

    def own(self, lengths: list[int]) -> slice:
        first = sum(lengths[: self.rank])
        return slice(first, first + lengths[self.rank])

    def give_back(self, tensor: Tensor, lengths: list[int]) -> Tensor:
        length = lengths[self.rank]
        parts = _exchange(tensor, lengths, [length] * self.count)
        return parts.view(self.count, length, *tensor.shape[1:]).sum(0)

    def sum(self, tensor: Tensor) -> Tensor:
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        if self.count > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def blocks(self, table: Tensor, num: int) -> Iterator[Tensor]:
        for first in range(0, _num_rows(num, 0, self.count), _SENT):
            sent = table[first : first + _SENT]
            lengths = [
                len(range(_num_rows(num, rank, self.count))[first : first + _SENT])
                for rank in range(self.count)
            ]
            nothing = [0] * self.count
            received = lengths if self.rank == 0 else nothing
            parts = _exchange(sent, [len(sent), *nothing[1:]], received).split(received)
            block = sent.new_empty(sum(received), *sent.shape[1:])
            for rank, part in enumerate(parts):
                block[rank :: self.count] = part
            yield block

    def _turned(self, numbers: Tensor) -> Tensor:
        """Return int64[R]: what each process has for this one."""
        return _exchange(numbers, [1] * self.count, [1] * self.count)


def sharded(network: nn.Module) -> dict[str, int]:
    """Return the names of the parameters that are rows of :class:`ShardedTables`, and N of each."""
    return {
        name: parameter.num_ids
        for name, parameter in network.named_parameters()
        if hasattr(parameter, "num_ids")
    }


def _table(rows: Tensor, num: int) -> nn.Parameter:
    table = nn.Parameter(rows)
    table.num_ids = num  # type: ignore[attr-defined]
    return table


def _num_rows(num: int, rank: int, count: int) -> int:
    return len(range(rank, num, count))


def _take(table: Tensor, rows: Tensor, sparse: bool = False) -> Tensor:
    return F.embedding(rows, table, sparse=sparse) if table.dim() > 1 else table[rows]


def _device() -> torch.device:
    """Return where the processes' numbers meet: NCCL sends what is on GPUs alone."""
    gpu = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


def _exchange(tensor: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send each process so many rows, in the order of processes, and return what they send."""
    if len(sent) == 1:
        return tensor
    found = tensor.new_empty(sum(received), *tensor.shape[1:])
    dist.all_to_all_single(found, tensor.contiguous(), received, sent)
    return found


class _Exchange(torch.autograd.Function):
    """:func:`_exchange`, whose gradients go back and become parts of the mean over processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sent: list[int], received: list[int]) -> Tensor:
        ctx.sent, ctx.received = sent, received
        return _exchange(tensor, sent, received)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(grad / len(ctx.sent), ctx.received, ctx.sent), None, None
