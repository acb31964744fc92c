"""Search of a network's settings: trials drawn by Optuna, each a training, the study kept in files.

What is to come follows from the seed and the trials that are done, so that a search that was
killed, and is begun again in the same folder, goes on as if it had never stopped. A trial that
cannot be trained counts as one that found nothing, so that it holds up no search.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from recs.errors import UserError
from recs.nn.models import read_settings
from recs.storage import join, read_file, remove_tree, write_file
from recs.training.checkpoint import last_step
from recs.training.launch import DivergedError, LaunchError, OutOfMemoryError, StartError
from recs.training.loop import read_loss
from recs.training.plan import Plan
from recs.training.settings import Network, TrainingJob
from recs.training.space import Range, Tune, Value, with_settings

log = logging.getLogger("recs")

#: Settings drawn together to find those that cannot be.
_DRAWS = 1000
#: Attempts at a trial from one place, its start or a checkpoint, after which it has failed.
_MOST_ATTEMPTS = 2


class StudyError(UserError):
    """A study that cannot go on, or in which nothing could be trained."""


@dataclass(frozen=True)
class Trial:
    """A trial that is done.

    Attributes
    ----------
    settings
        By dotted key below the network.
    value
        The validation metric; 0 if the training failed.
    seconds
        Of the training; 0 where an earlier trial had the same settings, whose value it takes.
    folder
        That it was trained in. Of all trials only the best one's is kept.
    failure
        Why nothing was trained; None otherwise.
    """

    number: int
    settings: dict[str, Value]
    value: float
    seconds: float
    folder: str
    failure: str | None


def check_space(name: str, network: Network, tune: Tune, lanes: int) -> None:
    """Refuse a space with settings that are not there, or values that cannot be.

    A thousand points of the space are looked at, half of the values in a range at its ends.

    Parameters
    ----------
    name
        Of the network in :mod:`recs.nn.models`.
    lanes
        Of the training set.

    Raises
    ------
    ValueError
        With the key at fault and the mend.
    """
    generator = random.Random(0)
    for _ in range(_DRAWS):
        settings = {key: _draw(parameter, generator) for key, parameter in tune.space.items()}
        made = with_settings(network, settings)
        try:
            read = _read(name, made)
            Plan((), lanes, made.training.batch_size, seed=0)
        except ValueError as error:
            shown = ", ".join(f"{key}={value}" for key, value in settings.items())
            raise ValueError(f"{error} (with {shown})") from None
        for key, parameter in tune.space.items():
            taken = reduce(getattr, key.split(".")[1:], read[key.partition(".")[0]])
            if isinstance(parameter, Range) and parameter.whole and isinstance(taken, float):
                low, high = float(parameter.low), float(parameter.high)
                raise ValueError(
                    f"{key} takes fractions, which a range of whole numbers leaves out: give it as "
                    f"{{low: {low}, high: {high}}}, or as a list"
                )


def _draw(parameter: list[Value] | Range, generator: random.Random) -> Value:
    if isinstance(parameter, list):
        return generator.choice(parameter)
    low, high = parameter.low, parameter.high
    if generator.random() < 0.5:
        return generator.choice([low, high])
    if parameter.whole:
        return generator.randint(int(low), int(high))
    return generator.uniform(low, high)


def _read(name: str, network: Network) -> dict[str, Any]:
    """Return what a network's parts are read as; ValueError if they cannot be."""
    return {
        "model": read_settings(name, network.model),
        "loss": read_loss(network.loss),
        "training": network.training,
    }


def search(
    job: TrainingJob, tune: Tune, train: Callable[[TrainingJob], Mapping[str, Any]]
) -> list[Trial]:
    """Make the trials that the study in ``job.folder`` lacks and return all, best first.

    A trial has failed that diverged or told that memory is lacking. One that ended otherwise, or
    that was being trained when this process was killed, is tried once more from where it has come
    to, and has failed if it comes no further.

    Parameters
    ----------
    job
        The training whose settings are searched; its folder is the study's.
    tune
        Trials and space.
    train
        Trains, going on from what is in the job's folder, and returns the metrics of
        :func:`recs.training.loop.train`.

    Raises
    ------
    StudyError
        If the folder holds a study of other settings or data, or no trial could be trained.
    Exception
        What ``train`` raises, but for a :class:`~recs.training.launch.LaunchError` of processes
        that did start. The search can then be begun again.
    """
    study = _open(job, tune)
    while (trial := _next(study, tune, job.seed)) is not None:
        before = _best(study)
        outcome = _known(study, trial) or _outcome(study, job, trial, train)
        study.set_user_attr(str(trial.number), outcome)
        study.tell(trial.number, outcome["value"])
        log.info("trial", extra={"model": job.name, **trial.params, **outcome})
        _remove(job, {trial.number, before} - {_best(study)})
    best, trials = _best(study), _done(study)
    _remove(job, {trial.number for trial in trials} - {best})  # a kill may have left one
    found = [
        Trial(
            trial.number,
            trial.params,
            folder=_folder(job, trial.number),
            **study.user_attrs[str(trial.number)],
        )
        for trial in trials
    ]
    found.sort(key=lambda trial: (trial.failure is not None, -trial.value, trial.number))
    if all(trial.failure for trial in found):
        raise StudyError(
            f"no trial of {job.name} could be trained; the first: {found[0].failure}. "
            "Narrow the space, and take another run_id"
        )
    return found


class _StudyFile(BaseJournalBackend):
    """Optuna's journal as a file of JSON lines, as its own ``JournalFileBackend`` has it.

    That one appends and locks by links, which object stores and mounted volumes do not know, and a
    kill can tear its last line. Here the file is written whole each time; one process writes it.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lines = (read_file(uri) or b"").splitlines()

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return map(json.loads, self._lines[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._lines += (json.dumps(entry).encode() for entry in logs)
        write_file(self._uri, b"".join(line + b"\n" for line in self._lines))


def _open(job: TrainingJob, tune: Tune) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(_StudyFile(join(job.folder, "study.jsonl"))),
        study_name=job.name,
        direction="maximize",
        load_if_exists=True,
    )
    of = job.model_dump(mode="json", exclude={"folder", "processes"})
    of["space"] = tune.model_dump(mode="json")["space"]
    if study.user_attrs.get("of", of) != of:
        raise StudyError(
            f"{job.folder} holds a study of other settings or data: take another run_id"
        )
    study.set_user_attr("of", of)
    return study


def _next(study: optuna.Study, tune: Tune, seed: int) -> FrozenTrial | None:
    """Return the trial that was begun and not done, else a new one; None when all are done."""
    for begun in study.get_trials(states=(TrialState.RUNNING,)):
        if begun.params.keys() == tune.space.keys():
            return begun
        study.tell(begun.number, state=TrialState.FAIL)  # killed while it was drawn
    done = len(_done(study))
    if done >= tune.trials:
        return None
    # Seeded anew for each trial: the state of a generator does not outlive a process.
    mixed = np.random.SeedSequence([seed % 2**64, done]).generate_state(1)[0]
    study.sampler = optuna.samplers.TPESampler(seed=int(mixed))
    space = {key: _distribution(parameter) for key, parameter in tune.space.items()}
    study.ask(space)
    return study.trials[-1]


def _distribution(parameter: list[Value] | Range) -> BaseDistribution:
    if isinstance(parameter, list):
        return CategoricalDistribution(parameter)
    if parameter.whole:
        return IntDistribution(int(parameter.low), int(parameter.high), parameter.log)
    return FloatDistribution(parameter.low, parameter.high, parameter.log)


def _known(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any] | None:
    """Return the outcome of an earlier trial with the same settings: trainings are repeatable."""
    for done in _done(study):
        if done.params == trial.params:
            return {**study.user_attrs[str(done.number)], "seconds": 0.0}
    return None


def _outcome(
    study: optuna.Study,
    job: TrainingJob,
    trial: FrozenTrial,
    train: Callable[[TrainingJob], Mapping[str, Any]],
) -> dict[str, Any]:
    """Train, and return the last three fields of :class:`Trial`."""
    folder = _folder(job, trial.number)
    try:
        network = with_settings(job.network, trial.params)
        _read(job.name, network)
        tried = TrainingJob.model_validate({**dict(job), "network": network, "folder": folder})
    except ValueError as error:  # the few that check_space has not met
        return _failed(str(error))
    # The step that each attempt has gone on from: noted before it, for it may end this process too.
    key = f"begun-{trial.number}"
    reason = f"its training was killed {_MOST_ATTEMPTS} times without coming any further"
    while True:
        begun, step = study.user_attrs.get(key, []), last_step(tried.checkpoints)
        if begun.count(step) >= _MOST_ATTEMPTS:
            return _failed(reason)
        study.set_user_attr(key, [*begun, step])
        try:
            done = train(tried)
        except (DivergedError, OutOfMemoryError) as error:
            return _failed(str(error))
        except BaseException as error:
            if not isinstance(error, LaunchError) or isinstance(error, StartError):
                study.set_user_attr(key, begun)  # it is no fault of the trial's
                raise
            reason = str(error)
            log.warning("attempt failed", extra={"model": job.name, "reason": reason})
        else:
            return {"value": done["validation"], "seconds": done["seconds"], "failure": None}


def _failed(reason: str) -> dict[str, Any]:
    return {"value": 0.0, "seconds": 0.0, "failure": reason}


def _done(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _best(study: optuna.Study) -> int | None:
    """Return the number of the best trial, of equal ones the first; None before there is one.

    One that could not be trained has left no model: any other is better.
    """

    def rank(trial: FrozenTrial) -> tuple[bool, float, int]:
        outcome = study.user_attrs[str(trial.number)]
        return outcome["failure"] is None, outcome["value"], -trial.number

    best = max(_done(study), key=rank, default=None)
    return None if best is None else best.number


def _folder(job: TrainingJob, number: int) -> str:
    return join(job.folder, f"trial-{number}")


def _remove(job: TrainingJob, numbers: Iterable[int | None]) -> None:
    for number in numbers:
        if number is not None:
            remove_tree(_folder(job, number))
