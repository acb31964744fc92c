"""Upkeep: small files are put together, and what nothing names any more is removed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator

from pyspark.errors import PySparkException

from pipelines.job import Job, Stage
from pipelines.networks import TRAINED
from recs import attempts, readers
from recs.errors import tell
from recs.lake import Commit, Folder, Lake, restored
from recs.ledger import RUNS, Ledger
from recs.schema import KEPT_DAYS, LOG_DAYS
from recs.storage import children, folder_name, join, read_file, remove_tree, seconds_since_change

log = logging.getLogger("recs")

_DAY = 86_400.0
#: Of a version that stages still name: long before Delta removes the commits since.
_VOUCHED_AFTER_DAYS = LOG_DAYS // 3
#: Of exports that the next trainings may still read.
_KEPT_SETS = 2


def run_upkeep(job: Job) -> None:
    """Compact and vacuum every table of the lake's mode, and remove old folders.

    Tables of stages that are at work are left to the next time, and what a folder of an unfinished
    run names stays.
    """
    lake = job.lake
    versions = Ledger(lake).versions()
    at_work = [told for told in attempts.at_work(lake.location) if told["stage"] != UPKEEP.name]
    compacted, left = [], []
    for name in readers.names(lake, versions):
        # Delta would refuse the next write of a table that is compacted amid.
        if any(told["writes"] is None or lake.key(name) in told["writes"] for told in at_work):
            left.append(name)
            continue
        try:
            if _compact(job, name, versions[lake.key(name)]):
                compacted.append(name)
            since = lake.commits(name, after=versions[lake.key(name)])
            _vouch(lake, name, versions[lake.key(name)], since)
            _vacuum(lake, name, since)
        except PySparkException as error:  # as where a platform does the same at this moment
            log.warning("%s is left to the next time: %s", name, tell(error).message)
            left.append(name)
    lake.compact(RUNS)
    lake.vacuum(RUNS)
    removed = list(_remove_folders(job))
    job.run.details |= {
        "compacted": json.dumps(compacted),
        "left": json.dumps(left),
        "removed": json.dumps(removed),
    }
    log.info("upkeep", extra={"compacted": compacted, "left": left, "removed": removed})


def _compact(job: Job, name: str, version: int) -> bool:
    """Compact a table if its files or deleted rows are many; return whether it was."""
    settings, lake = job.config.upkeep, job.lake
    if not lake.same_content(name, version)[1]:
        return False  # the next run of its stage puts back what an unfinished one has left
    files, size = lake.files(name)
    many = files > settings.files and size / files < settings.small_mb * 2**20
    deleted = 0
    for commit in reversed(lake.commits(name, after=0)):
        if commit.operation == "OPTIMIZE":
            break
        deleted += commit.deleted
    live = lake.load(name, version).count() if deleted else 0
    if not (many or deleted > settings.deleted_share * (live + deleted)):
        return False
    lake.compact(name)
    return True


def _vouch(lake: Lake, name: str, version: int, since: list[Commit]) -> None:
    """Note what has the content of a version that was committed long ago."""
    old = bool(since) and time.time() - since[0].at > _VOUCHED_AFTER_DAYS * _DAY
    if old and since[-1].mark != restored(version) and lake.same_content(name, version)[1]:
        lake.vouch(name, version)


def _vacuum(lake: Lake, name: str, since: list[Commit]) -> None:
    """Remove files that no version of the last days has, nor the committed one."""
    changes = [commit for commit in since if not commit.keeps_content]
    needed = (time.time() - changes[0].at) / _DAY if changes else 0.0
    # What an unfinished run has written over it stays until its stage runs again, and so must it.
    lake.vacuum(name, hours=24 * max(KEPT_DAYS, needed + 1))


def _remove_folders(job: Job) -> Iterator[str]:
    """Remove training sets, models and studies that nothing names; return their paths."""
    location, mode, ledger = job.lake.location, job.lake.mode, Ledger(job.lake)
    busy = {folder_name(told["run_id"]) for told in attempts.at_work(location)}
    given_up = job.config.upkeep.unfinished_days * _DAY
    unfinished: set[str] = set()
    stages: dict[Folder, str] = {"models": "train", "studies": "tune"}
    for kind, stage in stages.items():
        for model in children(location.folder(kind, mode)):
            finished = [folder_name(run.run_id) for run in ledger.finished(stage, model)]
            keep = {*finished[-job.config.upkeep.models :], *busy}
            embedded = ledger.newest("embed", model)
            if embedded is not None:
                keep.add(folder_name(embedded.details[TRAINED]))
            for folder in children(location.folder(kind, mode, model)):
                path = location.folder(kind, mode, model, folder)
                young = seconds_since_change(path) < given_up
                if folder in keep or (folder not in finished and young):
                    if folder not in finished:
                        unfinished |= set(_training_sets(path))
                    continue
                remove_tree(path)
                yield path
    exported = [folder_name(run.run_id) for run in ledger.finished("export")]
    keep = {*exported[-_KEPT_SETS:], *busy, *unfinished}
    for name in children(location.folder("training_sets", mode)):
        path = location.folder("training_sets", mode, name)
        # A young one may be that of a training which has yet to begin.
        if name not in keep and seconds_since_change(path) > given_up:
            remove_tree(path)
            yield path


def _training_sets(folder: str) -> Iterator[str]:
    """Return the names of the training sets that an unfinished training, or a search, reads."""
    for path in (folder, *(join(folder, trial) for trial in children(folder))):
        told = read_file(join(path, "job.json"))
        if told is not None:
            yield str(json.loads(told)["training_set"]).rstrip("/").rpartition("/")[2]


UPKEEP = Stage(
    "upkeep",
    "Compact and vacuum tables, and remove old models, studies and training sets.",
    reads=(),
    writes=(),
    settings=("mode", "upkeep"),
    work=run_upkeep,
)
