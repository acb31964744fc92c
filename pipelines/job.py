"""What a stage is, and how one is run: committed whole, or as if it had never begun."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from recs.config import Config
from recs.lake import Lake, LakeError, Write
from recs.ledger import Finished, Ledger, label
from recs.runs import Run
from recs.schema import FOLDERS, part, table_of

log = logging.getLogger("recs")

# Details of runs.
_FITTED_ON = "fitted_on"
_SETTINGS = "settings"


@dataclass(frozen=True)
class Job:
    """What a stage works with: the configuration, and the run that reads and writes its tables.

    Tables that hold models are called by the name of a part, as ``ranks/slim``; a stage that is of
    a model calls the model's own parts by the table's name alone.
    """

    config: Config
    run: Run
    #: The model that the stage is of; None of one that is of all.
    model: str | None = None
    _kept: list[DataFrame] = field(default_factory=list)

    @property
    def lake(self) -> Lake:
        """The lake."""
        return self.run.lake

    @property
    def spark(self) -> SparkSession:
        """The session."""
        return self.run.lake.spark

    @property
    def work_folder(self) -> str:
        """Folder of working files of this attempt; removed when it ends."""
        return self.run.work_folder

    @property
    def fit_splits(self) -> tuple[str, ...]:
        """Splits whose events models are fitted on and read as history."""
        held_out_later = (
            self.config.mode == "backtest" and self.config.evaluate.split == "validation"
        )
        return ("train",) if held_out_later else ("train", "validation")

    def note_splits(self, splits: Sequence[str]) -> None:
        """Keep with the run which splits' events its models are fitted on."""
        self.run.details[_FITTED_ON] = ",".join(splits)

    def splits_of(self, fitted: Finished) -> tuple[str, ...]:
        """Return the splits that a run of a fitting stage has noted."""
        return tuple(fitted.details.get(_FITTED_ON, "").split(","))

    def note_settings(self, keys: Sequence[str]) -> None:
        """Keep with the run the hashes of settings that whoever reads its outputs may ask for."""
        self.run.details[_SETTINGS] = json.dumps({key: self.config.hash(key) for key in keys})

    def other_settings(self, made: Finished, keys: Sequence[str]) -> list[str]:
        """Return those of the keys whose settings a run has not noted as they are now."""
        noted = json.loads(made.details.get(_SETTINGS, "{}"))
        return [key for key in keys if noted.get(key) != self.config.hash(key)]

    def require_settings(self, stage: str, model: str | None, keys: Sequence[str]) -> None:
        """Refuse what a stage has made with other settings than those now given.

        Raises
        ------
        LakeError
            If its last run has noted another value of one of the keys.
        """
        made = self.run.newest(stage, model)
        other = [] if made is None else self.other_settings(made, keys)
        if other:
            name = label(stage, model)
            raise LakeError(
                f"{name} was last run with another {', '.join(other)}: run the stage {name} "
                "again, or give the settings that it had"
            )

    def require_fitted(self, stage: str, model: str, table: str) -> None:
        """Refuse a model that knows the events to be ranked, or fewer than it may.

        Mode serve takes models that were fitted on earlier interactions: they hold nothing out.

        Parameters
        ----------
        stage, table
            The stage that fits it, and the table to whose part it writes it.

        Raises
        ------
        LakeError
            If the stage fitted it on other splits than :attr:`fit_splits`, or for a backtest on
            other interactions, of which another part may have been held out.
        """
        fitted = self.run.newest(stage, model)
        if fitted is None:
            return  # what was never fitted has no table, which reading it tells
        if self.splits_of(fitted) != self.fit_splits:
            split, name = self.config.evaluate.split, label(stage, model)
            raise LakeError(
                f"{name} was last run for another evaluate.split than {split}: run it again with "
                f"evaluate.split={split}, and the stages after it"
            )
        if self.config.mode == "backtest":
            self.run.require_one_generation("interactions", part(table, model))

    def name(self, table: str) -> str:
        """Return a table's full name: of one that holds models, the part of the stage's model."""
        return part(table, self.model) if self.model and "/" not in table else table

    def has(self, table: str) -> bool:
        """Tell whether a finished run has written the table."""
        return self.run.has(self.name(table))

    def read(self, table: str) -> DataFrame:
        """Return a table as committed when the run began."""
        return self.run.read(self.name(table))

    def write(self, table: str, df: DataFrame, how: Write = "overwrite") -> int:
        """Write a table, seen by others when the run commits; return the rows written."""
        return self.run.write(self.name(table), df, how)

    def write_rows(
        self, table: str, rows: Sequence[Mapping[str, Any]], how: Write = "overwrite"
    ) -> int:
        """Write a few rows made here, each with the same of the table's columns by name."""
        columns = table_of(self.name(table)).columns
        columns = tuple(column for column in columns if column.name in rows[0])
        schema = ", ".join(f"{column.name} {column.type}" for column in columns)
        values = [[row[column.name] for column in columns] for row in rows]
        return self.write(table, self.spark.createDataFrame(values, schema), how)

    def clear(self, table: str) -> None:
        """Leave no rows of an earlier run where this one has none to write."""
        if self.has(table):
            rows = self.read(table)
            if not rows.isEmpty():
                self.write(table, rows.drop("run_id").limit(0))

    def keep(self, *tables: str) -> None:
        """Let tables stand as the stage's last run has written them."""
        for table in tables:
            self.run.keep(self.name(table))

    def persist(self, df: DataFrame) -> DataFrame:
        """Keep what ``df`` computes until the stage ends."""
        self._kept.append(df.persist())
        return df

    def unpersist(self) -> None:
        """Let go of what :meth:`persist` kept."""
        for df in self._kept:
            df.unpersist()

    def num_items(self) -> int:
        """Return the size of the vocabulary of items."""
        return self._size("item_ids")

    def num_users(self) -> int:
        """Return the size of the vocabulary of users."""
        return self._size("user_ids")

    def _size(self, table: str) -> int:
        # Ids are dense, so that their number is the table's row count, which Delta's log knows.
        return self.read(table).count()


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline.

    Attributes
    ----------
    name
        As in the command line and in ``runs``.
    help
        One line.
    reads, writes
        Names of tables, of models' parts, and of :data:`recs.schema.FOLDERS`. A stage is held to
        them, and what reads a table comes after what writes it.
    settings
        Settings it depends on, as ``split`` or ``events.types``; the run keeps them.
    shared
        Its tables serve both modes.
    model
        The model that it is of; None of a stage of all.
    work
        The step itself.
    """

    name: str
    help: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: tuple[str, ...]
    work: Callable[[Job], None]
    shared: bool = False
    model: str | None = None

    @property
    def label(self) -> str:
        """The stage as people name it: ``split``, or ``fit/slim``."""
        return label(self.name, self.model)


def run_stage(
    stage: Stage, lake: Lake, config: Config, run_id: str, *, take_over: bool = False
) -> Finished:
    """Run a stage and return its committed run; a stage that this run finished is not run again.

    Raises
    ------
    LakeError
        If the run finished the stage with other settings; what the stage and the lake raise.
    recs.attempts.AtWork
        If another attempt at the stage is at work, and is not to be taken over.
    """
    config_hash = config.hash(*stage.settings)
    done = Ledger(lake).newest(stage.name, stage.model, run_id=run_id)
    if done is not None:
        if done.config_hash != config_hash:
            raise LakeError(
                f"run {run_id} has finished {stage.label} with other settings: take another run_id"
            )
        log.info("already finished by this run", extra={"stage": stage.label})
        return done
    run = Run(
        lake,
        stage.name,
        run_id,
        config_hash,
        part=stage.model,
        settings=json.dumps(config.pick(*stage.settings), sort_keys=True),
        shared=stage.shared,
        rebuild=config.rebuild,
        reads=stage.reads,
        writes=[name for name in stage.writes if name not in FOLDERS],
        take_over=take_over,
    )
    with run:
        job = Job(config, run, stage.model)
        try:
            stage.work(job)
        finally:
            job.unpersist()
    assert run.finished is not None
    return run.finished
