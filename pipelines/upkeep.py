"""Upkeep: small files are put together, and what nothing names any more is removed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator

from pyspark.errors import PySparkException

from pipelines.job import Job, Stage
from recs import attempts, readers
from recs.errors import tell
from recs.lake import Lake, restored
from recs.ledger import RUNS, Ledger
from recs.storage import children, folder_name, join, read_file, remove_tree, seconds_since_change

log = logging.getLogger("recs")

_DAY = 86_400.0
#: Of a table's own rule: VACUUM removes what no version of the last so many days has.
_KEPT_DAYS = 30
#: Of a version that stages still name; before Delta removes the commits since, in 60 days.
_VOUCHED_AFTER_DAYS = 20
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
            _vouch(lake, name, versions[lake.key(name)])
            _vacuum(lake, name, versions[lake.key(name)])
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


def _vouch(lake: Lake, name: str, version: int) -> None:
    """Note what has the content of a version that was committed long ago."""
    commits = lake.commits(name, after=version)
    old = bool(commits) and time.time() - commits[0].at > _VOUCHED_AFTER_DAYS * _DAY
    if old and commits[-1].mark != restored(version) and lake.same_content(name, version)[1]:
        lake.vouch(name, version)


def _vacuum(lake: Lake, name: str, version: int) -> None:
    """Remove files that no version of the last days has, nor the committed one."""
    after = [commit for commit in lake.commits(name, after=version) if not commit.keeps_content]
    needed = (time.time() - after[0].at) / _DAY if after else 0.0
    # What an unfinished run has written over it stays until its stage runs again, and so must it.
    lake.vacuum(name, hours=24 * max(_KEPT_DAYS, needed + 1))


def _remove_folders(job: Job) -> Iterator[str]:
    """Remove training sets, models and studies that nothing names; return their paths."""
    location, mode, ledger = job.lake.location, job.lake.mode, Ledger(job.lake)
    busy = {folder_name(told["run_id"]) for told in attempts.at_work(location)}
    given_up = job.config.upkeep.unfinished_days * _DAY
    unfinished: set[str] = set()
    for kind, stage in (("models", "train"), ("studies", "tune")):
        for model in children(join(location.root, kind, mode)):
            finished = [folder_name(run.run_id) for run in ledger.finished(stage, model)]
            keep = {*finished[-job.config.upkeep.models :], *busy}
            embedded = ledger.newest("embed", model)
            if embedded is not None:
                keep.add(folder_name(embedded.details["trained"]))
            for folder in children(join(location.root, kind, mode, model)):
                path = join(location.root, kind, mode, model, folder)
                young = seconds_since_change(path) < given_up
                if folder in keep or (folder not in finished and young):
                    if folder not in finished:
                        unfinished |= set(_training_sets(path))
                    continue
                remove_tree(path)
                yield path
    exported = [folder_name(run.run_id) for run in ledger.finished("export")]
    keep = {*exported[-_KEPT_SETS:], *busy, *unfinished}
    sets = join(location.root, "training_sets", mode)
    for name in children(sets):
        # A young one may be that of a training which has yet to begin.
        if name not in keep and seconds_since_change(join(sets, name)) > given_up:
            remove_tree(join(sets, name))
            yield join(sets, name)


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
