"""How a network is trained: settings that need neither Spark nor torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recs.settings import Strict
from recs.storage import join

_Positive = Annotated[int, Field(gt=0)]
_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]

#: Ranks of validation's targets are counted one by one up to here.
MOST_RANKS = 100


class Optimizer(Strict):
    """AdamW, Adam or Adagrad, with a rate that warms up and falls.

    Attributes
    ----------
    name
        ``adamw`` decays weights beside Adam's step, ``adam`` within its gradient.
    rate
        Learning rate after the warm-up.
    weight_decay
        Of tables and matrices; vectors and biases are not decayed. None is 0.01 for ``adamw`` and 0
        for ``adam`` and ``adagrad``. Those two take it as a part of the gradient, which they divide
        by its own size: whatever its value, a row that no step reads would move to 0 as fast as
        others learn.
    betas
        Of Adam's means of gradients and of their squares.
    eps
        What is added to the root of a gradient's mean square before a step is divided by it. The
        gradient of full cross-entropy for a rare item is tiny and nearly always away from all
        histories; with an eps far below it, Adam makes of it steps as large as of any other.
    warm_up_steps
        Steps over which it rises from 0.
    decay
        ``cosine`` or ``linear`` to 0 over the epochs, or ``constant``.
    clip
        Largest norm of all gradients; None leaves them as they are.
    tables
        ``sparse`` updates only those rows of the tables of items and users that a step has read,
        for large tables and losses over sampled negatives. It is another optimizer than ``dense``:
        see :class:`recs.training.optimizer.RowAdam`.
    """

    name: Literal["adamw", "adam", "adagrad"] = "adamw"
    rate: _Rate = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    betas: tuple[_Share, _Share] = (0.9, 0.98)
    eps: _Rate = 1e-8
    warm_up_steps: Annotated[int, Field(ge=0)] = 100
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    clip: _Rate | None = 5.0
    tables: Literal["dense", "sparse"] = "dense"

    @property
    def effective_weight_decay(self) -> float:
        """The weight decay, where none is given the one that goes with :attr:`name`."""
        if self.weight_decay is None:
            return 0.01 if self.name == "adamw" else 0.0
        return self.weight_decay

    @model_validator(mode="after")
    def _decays(self) -> Optimizer:
        if self.name == "adagrad" and self.tables == "sparse" and self.weight_decay:
            raise ValueError(
                "adagrad has no weight decay where tables are sparse: give weight_decay 0, "
                "name adamw, or tables dense"
            )
        return self


class Validation(Strict):
    """The metric on validation events by which training stops, of full ranking.

    It is what the protocol ``full`` measures of each user's first target: see
    :mod:`recs.training.validation`.

    Attributes
    ----------
    metric, k
        NDCG@k or HR@k.
    every
        Epochs between two measurements.
    patience
        Measurements without a new best after which training stops; None: never.
    """

    metric: Literal["ndcg", "hr"] = "ndcg"
    k: Annotated[int, Field(gt=0, le=MOST_RANKS)] = 10
    every: _Positive = 1
    patience: _Positive | None = 10


class Training(Strict):
    """How long, how fast and on what a network is trained.

    Attributes
    ----------
    epochs
        At most so many passes over the training set; ``validation`` may end it before.
    feed
        What reads the training set: ``petastorm``, or ``arrow``, which is faster and needs no more
        than any pyarrow; batches are the same. ``auto`` is ``petastorm`` where it reads a file in
        every process that trains, else ``arrow``.
    length
        Longest history that the network reads; of a longer one a random part, another in every
        epoch. None: that of the sequences but one, as each event asks for the next.
    batch_size
        Histories of a step over all processes; a multiple of ``export.lanes``.
    accumulate
        Parts that a process takes its share of a batch in, one after the other.
    precision
        ``bf16`` computes products in bfloat16; weights stay float32.
    compile
        Whether ``torch.compile`` makes kernels for the network.
    sharded
        Whether each process holds only its part of the rows of the tables of items and users, for
        tables larger than a GPU: see :mod:`recs.nn.tables`.
    checkpoint_steps
        Steps between two checkpoints; one is written at the end of each epoch too.
    keep_checkpoints
        Newest so many are kept.
    timeout_minutes
        A process that others wait for so long has failed.
    """

    epochs: _Positive = 20
    batch_size: _Positive = 128
    accumulate: _Positive = 1
    length: _Positive | None = None
    feed: Literal["auto", "petastorm", "arrow"] = "auto"
    optimizer: Optimizer = Optimizer()
    validation: Validation = Validation()
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    sharded: bool = False
    checkpoint_steps: _Positive = 1000
    keep_checkpoints: _Positive = 2
    timeout_minutes: Annotated[float, Field(gt=0)] = 10.0

    @model_validator(mode="after")
    def _compiles(self) -> Training:
        if self.compile and (self.sharded or self.optimizer.tables == "sparse"):
            raise ValueError(
                "how many rows are exchanged differs from step to step, which is not compiled: "
                "leave out compile, or sharded and optimizer.tables sparse"
            )
        return self


class Network(Strict):
    """A network of the pipeline, by its name in :mod:`recs.nn.models`.

    Attributes
    ----------
    model
        Settings of the model, as its class names them.
    loss
        Settings of :mod:`recs.nn.losses`.
    """

    model: dict[str, Any] = {}
    loss: dict[str, Any] = {}
    training: Training = Training()


class Processes(Strict):
    """What training runs on.

    Attributes
    ----------
    count
        Processes; on GPUs one each.
    gpu
        Whether each has a GPU.
    local
        True starts them on the driver's machine, False as tasks of the cluster.
    threads
        Threads of a process for products; None shares the machine's cores out (``local``).
    """

    count: _Positive = 1
    gpu: bool = False
    local: bool = True
    threads: _Positive | None = None


class TrainingJob(Strict):
    """Everything that the processes are told.

    Attributes
    ----------
    name
        Of the model in :mod:`recs.nn.models`.
    training_set
        URI of the folder of the training set.
    folder
        URI of the folder that the model is written to, with checkpoints while it is trained.
    versions
        What the model is of: versions of the vocabularies and the run.
    exclude_seen
        Whether validation ranks as lists are made that leave out what users have had; see
        ``recommend.exclude_seen``.
    """

    name: str
    training_set: str
    folder: str
    network: Network
    processes: Processes
    seed: int
    versions: dict[str, str] = {}
    exclude_seen: bool = True

    @property
    def checkpoints(self) -> str:
        """URI of the folder of checkpoints."""
        return join(self.folder, "checkpoints")

    @model_validator(mode="after")
    def _fits_the_processes(self) -> TrainingJob:
        check_processes(self.network.training, self.processes.count)
        return self


def check_processes(training: Training, count: int) -> None:
    """Refuse a training that so many processes cannot share.

    Raises
    ------
    ValueError
        With the setting at fault and the mend.
    """
    if training.optimizer.tables == "sparse" and count > 1 and not training.sharded:
        raise ValueError(
            f"sparse gradients of whole tables are not summed over {count} processes: give "
            "training.sharded true, or optimizer.tables dense"
        )
    size = training.batch_size
    if size % count:
        raise ValueError(
            f"batch_size {size} cannot be shared by {count} processes: give a multiple"
        )
