"""Delta tables of one lake: where they live, how they are made, read at a version and written.

Delta has no transaction over several tables. Here a row of the table ``runs`` is the commit point
(:mod:`recs.runs`): what a table holds is what its version holds that the newest finished run names,
so that what an unfinished run left is never seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Literal

from delta.tables import DeltaTable
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from recs import delta_log
from recs.errors import UserError
from recs.schema import Mode, Table, table_of
from recs.session import num_tasks, settings
from recs.storage import check_catalog, check_uri, exists, folder_name, join

_MODE_PROPERTY = "recs.mode"
_VERSION_PROPERTY = "recs.schema_version"
_VOUCHED_PROPERTY = "recs.has_content_of"
_RECENT_COMMITS = 20

#: Operations of Delta that leave a table's rows as they are, whoever commits them.
_UPKEEP = frozenset(
    {
        "OPTIMIZE",
        "REORG",
        "VACUUM START",
        "VACUUM END",
        "SET TBLPROPERTIES",
        "UNSET TBLPROPERTIES",
        "CLUSTER BY",
        "ADD CONSTRAINT",
        "DROP CONSTRAINT",
        "CHANGE COLUMN",
        "UPGRADE PROTOCOL",
        "COMPUTE STATS",
        "DOMAIN METADATA CLEANUP",
        "ROW TRACKING BACKFILL",
    }
)

#: What Delta says where a version can no longer be had.
_GONE = re.compile(r"Not all files from version|DELTA_VERSION_NOT_FOUND|Cannot time travel")

_LISTED_BY = "spark.sql.sources.parallelPartitionDiscovery.parallelism"

#: What a commit tells of itself.
_TOLD = ("timestamp", "userMetadata", "operation", "operationMetrics")

Write = Literal["append", "overwrite"]
Folder = Literal["training_sets", "models", "studies"]


class LakeError(UserError):
    """A table is missing, of another mode, or of a newer schema."""


class VersionGone(LakeError):
    """Files of a version are gone, or what Delta's log says of it."""


@dataclass(frozen=True)
class Commit:
    """A commit of a Delta table.

    Attributes
    ----------
    at
        When it was made, in seconds since 1970.
    mark
        What its author has given as ``userMetadata``.
    operation
        Delta's name of what was done, as ``WRITE``.
    rows, deleted, bytes
        Rows that it wrote and deleted, and bytes of the files that it wrote.
    """

    version: int
    at: float
    mark: str | None
    operation: str | None
    rows: int = 0
    deleted: int = 0
    bytes: int = 0

    @property
    def keeps_content(self) -> bool:
        """Whether the table's rows are those of the version before."""
        return self.operation in _UPKEEP

    @classmethod
    def of(
        cls,
        version: int,
        at: datetime | int | None,
        mark: str | None,
        operation: str | None,
        metrics: Mapping[str, str] | None,
    ) -> Commit:
        """Return a commit as Delta tells it: ``operationMetrics`` count rows and bytes.

        Its time is milliseconds in the log, and of this machine's zone in a history.
        """
        metrics = metrics or {}
        return cls(
            version,
            at.timestamp() if isinstance(at, datetime) else (at or 0) / 1000,
            mark,
            operation,
            rows=int(metrics.get("numOutputRows", 0)),
            deleted=int(metrics.get("numTargetRowsDeleted", 0)),
            bytes=int(metrics.get("numOutputBytes", metrics.get("numTargetBytesAdded", 0))),
        )


def restored(version: int) -> str:
    """Return the mark of a commit that puts a table's content back to a version."""
    return f"recs restored {version}"


@dataclass(frozen=True)
class Location:
    """Where the tables live: a folder, or a catalog and schema.

    Parameters
    ----------
    root
        Folder (local path, ``s3a://``, ``abfss://``, ``/Volumes/…``). With a catalog it holds only
        working files (stream checkpoints, matrices).
    catalog
        ``catalog.schema`` or ``schema``; None when tables are paths under ``root``.
    """

    root: str
    catalog: str | None = None

    def __post_init__(self) -> None:
        check_uri(self.root)
        if self.catalog is not None:
            check_catalog(self.catalog)

    def address(self, name: str, mode: Mode) -> str:
        """Return the path of a table or part, or its full name in the catalog."""
        shared = table_of(name).scope == "lake"
        if self.catalog is not None:
            prefix = "" if shared else f"{mode}_"
            return f"{self._schema}.{prefix}{name.replace('/', '_')}"
        return join(self.root, "lake" if shared else mode, name)

    def whole(self, table: Table, mode: Mode) -> str:
        """Return what all parts of a table are below: a folder, or the name of a view of them."""
        if self.catalog is not None:
            return f"{self._schema}.{mode}_{table.name}"
        return join(self.root, mode, table.name)

    @property
    def _schema(self) -> str:
        assert self.catalog is not None
        parts = (f"`{part}`" if "-" in part else part for part in self.catalog.split("."))
        return ".".join(parts)

    def folder(self, kind: Folder, mode: Mode, *below: str) -> str:
        """Return the folder of all training sets, models or studies of a mode, or one below it."""
        return join(self.root, kind, mode, *below)

    def training_set(self, mode: Mode, run_id: str) -> str:
        """Return the folder of the training set that a run exports."""
        return self.folder("training_sets", mode, folder_name(run_id))

    def model(self, mode: Mode, name: str, run_id: str) -> str:
        """Return the folder that a run trains a network in."""
        return self.folder("models", mode, name, folder_name(run_id))

    def study(self, mode: Mode, name: str, run_id: str) -> str:
        """Return the folder of a run's search of a network's settings."""
        return self.folder("studies", mode, name, folder_name(run_id))

    def work(self, *parts: str) -> str:
        """Return a path for working files, outside every table."""
        return join(self.root, "_work", *parts)


class Lake:
    """The tables of one location, seen in one mode.

    Parameters
    ----------
    spark
        The session.
    location
        Where the tables live.
    mode
        ``backtest`` or ``serve``; picks the tables of scope ``mode`` and ``model``.

    Tables are called by their names in :data:`recs.schema.TABLES`; those that hold models by the
    name of a part, as ``ranks/slim``.
    """

    def __init__(self, spark: SparkSession, location: Location, mode: Mode) -> None:
        self.spark = spark
        self.location = location
        self.mode = mode
        self._checked: set[str] = set()  # asking Delta for properties takes time; once is enough
        self._reads_log = location.catalog is None and delta_log.is_readable(location.root)
        #: The ledger's Delta version as last read, and its rows; see :class:`recs.ledger.Ledger`.
        self.ledger: tuple[int, list[Row]] | None = None

    # -- names ----------------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """Return the path or full name of a table."""
        return self.location.address(name, self.mode)

    def key(self, name: str) -> str:
        """Return the name under which ``runs`` knows a table: ``events``, ``serve/ranks/slim``."""
        return name if table_of(name).scope == "lake" else f"{self.mode}/{name}"

    # -- tables ---------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Tell whether the table has been created."""
        if self.location.catalog is not None:
            return self.spark.catalog.tableExists(self.address(name))
        return DeltaTable.isDeltaTable(self.spark, self.address(name))

    def delta(self, name: str) -> DeltaTable:
        """Return Delta's handle of an existing table."""
        if self.location.catalog is not None:
            return DeltaTable.forName(self.spark, self.address(name))
        return DeltaTable.forPath(self.spark, self.address(name))

    def create(self, name: str) -> bool:
        """Make the table if it is not there, in one commit; else check its mode and migrate it.

        Returns whether a commit was made.

        Raises
        ------
        LakeError
            If the table belongs to the other mode or was written by a newer recs.
        """
        table = table_of(name)
        if name in self._checked:
            return False
        if table.scope == "model":
            self._refuse_undivided(table)
        if self.exists(name):
            migrated = self._check_and_migrate(name, table)
            self._checked.add(name)
            return migrated
        builder = DeltaTable.createIfNotExists(self.spark).comment(table.comment)
        if self.location.catalog is not None:
            builder = builder.tableName(self.address(name))
        else:
            builder = builder.location(self.address(name))
        for column in table.all_columns:
            builder = builder.addColumn(
                column.name, column.type, nullable=column.nullable, comment=column.comment
            )
        if table.cluster_by:
            builder = builder.clusterBy(*table.cluster_by)
        for check, condition in table.checks.items():
            builder = builder.property(f"delta.constraints.{check}", condition)
        for key, value in table.all_properties.items():
            builder = builder.property(key, value)
        builder = builder.property(_VERSION_PROPERTY, str(table.version))
        builder.property(_MODE_PROPERTY, self._table_mode(table)).execute()
        self._checked.add(name)
        return True

    def _refuse_undivided(self, table: Table) -> None:
        """Refuse to make a part where an older recs has one table of all models.

        As paths they would lie in its folder, where a VACUUM of it would remove their files.
        """
        whole = self.location.whole(table, self.mode)
        if self.location.catalog is not None:
            undivided = self.spark.catalog.tableExists(whole) and (
                self.spark.catalog.getTable(whole).tableType != "VIEW"
            )
        else:
            undivided = exists(join(whole, "_delta_log"))
        if undivided:
            raise LakeError(
                f"table {whole} is of an older recs, which kept all models in one: remove it (and "
                "the others that hold models), and fit the models again"
            )

    def load(self, name: str, version: int | None = None) -> DataFrame:
        """Return a table at a Delta version (None: the newest, committed or not)."""
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        address = self.address(name)
        df = reader.table(address) if self.location.catalog is not None else reader.load(address)
        table = table_of(name)
        missing = [c.name for c in table.columns if c.name not in df.columns]
        if missing:
            raise LakeError(
                f"table {address} has no column {missing[0]!r}, for another recs wrote it: give "
                "the lake another root, and deliver the raw data again"
            )
        # A version written before a migration reads null in the columns that came later.
        later = [column for column in table.added if column.name not in df.columns]
        return df.withColumns({c.name: F.lit(None).cast(c.type) for c in later}) if later else df

    def save(
        self,
        name: str,
        df: DataFrame,
        how: Write,
        *,
        run_id: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Write ``df`` (all columns of the table, any order) in one Delta commit.

        Where ``run_id`` is given, the rows are this run's, and ``df`` lacks the column.
        """
        if run_id is not None:
            df = df.withColumn("run_id", F.lit(run_id))
        columns = [column.name for column in table_of(name).all_columns]
        # Without a condition, Delta would drop the table's clustering with its rows.
        all_rows = {"replaceWhere": "true"} if how == "overwrite" else {}
        writer = df.select(*columns).write.format("delta").mode(how)
        writer = writer.options(**all_rows, **(options or {}))
        if self.location.catalog is not None:
            writer.saveAsTable(self.address(name))
        else:
            writer.save(self.address(name))

    def save_row(self, name: str, row: Mapping[str, Any], options: Mapping[str, str]) -> None:
        """Append a row that is made here, in one Delta commit."""
        # By way of JSON it is made in the JVM; rows of Python objects cost a Python task.
        table = table_of(name)
        schema = table.ddl(*(column.name for column in table.all_columns))
        text = F.lit(json.dumps(row, default=lambda value: value.isoformat()))
        one = self.spark.range(0, 1, 1, 1).select(F.from_json(text, schema).alias("row"))
        self.save(name, one.select("row.*"), "append", options=options)

    def rows(self, name: str, version: int) -> list[Row]:
        """Return all rows of a small table."""
        return self.load(name, version).collect()

    def compact(self, name: str) -> None:
        """Rewrite small files, and files with deleted rows, in one Delta commit or none."""
        self.delta(name).optimize().executeCompaction()

    def vacuum(self, name: str, hours: float | None = None) -> None:
        """Remove the files that no version of so many hours has; by default the table's rule."""
        # Spark's own number, 10,000 tasks to list files by, takes a minute for the smallest table.
        with settings(self.spark, {_LISTED_BY: str(num_tasks(self.spark))}):
            self.delta(name).vacuum(hours)

    def files(self, name: str) -> tuple[int, int]:
        """Return the number of files of a table's newest version, and their bytes."""
        detail = self.delta(name).detail().select("numFiles", "sizeInBytes").collect()[0]
        return detail["numFiles"], detail["sizeInBytes"]

    def delete(self, name: str, keys: DataFrame, among: Column | None = None) -> None:
        """Delete, in one Delta commit, the rows whose value of ``keys``' one column is in it.

        ``among`` is a condition on the table's columns that they have to meet.
        """
        (key,) = keys.columns
        # Under a name of its own, so that columns of the condition are the table's.
        gone = keys.select(F.col(key).alias("_gone"))
        same = F.col(key) == F.col("_gone")
        if among is not None:
            same = same & among
        merge = self.delta(name).merge(gone, same)
        merge.whenMatchedDelete().execute()

    def restore(self, name: str, version: int) -> None:
        """Put the table's content back to a version, as a new version.

        Raises
        ------
        VersionGone
            If files of the version are gone.
        """
        try:
            self.delta(name).restoreToVersion(version).collect()
        except (PySparkException, Py4JError) as error:
            if not _GONE.search(str(error)):
                raise
            raise VersionGone(
                f"files of version {version} of {self.address(name)}, which a run has committed, "
                f"are gone: run `recs repair {name}`"
            ) from error

    def newest(self, name: str) -> int | None:
        """Return the newest version of a table, whoever wrote it; None if it is not there."""
        if self._reads_log:
            return max(delta_log.versions(self.address(name)), default=None)
        return self._history(name, 1)[0].version if self.exists(name) else None

    def commits(self, name: str, after: int) -> list[Commit]:
        """Return the commits of a table after a version, oldest first."""
        if self._reads_log:
            address = self.address(name)
            found = [version for version in delta_log.versions(address) if version > after]
            told = [(version, delta_log.commit_info(address, version)) for version in found]
            return [Commit.of(version, *(info.get(key) for key in _TOLD)) for version, info in told]
        commits = self._history(name, _RECENT_COMMITS)
        wanted = commits[0].version - after
        if wanted > len(commits):
            commits = self._history(name, wanted)
        return sorted((c for c in commits if c.version > after), key=attrgetter("version"))

    def same_content(self, name: str, version: int) -> tuple[int, bool]:
        """Return the newest version with the content of one, and whether it is the table's newest.

        Commits since that keep a table's content, and those marked as having it, do: what a failed
        run has put back, and what :meth:`vouch` has noted.
        """
        commits = self.commits(name, after=version)
        # Delta removes commits of long ago; what they have done is not known.
        same, found = version, not commits or commits[0].version == version + 1
        for commit in commits:
            found = commit.mark == restored(version) or (found and commit.keeps_content)
            if found:
                same = commit.version
        return same, found

    def vouch(self, name: str, version: int) -> None:
        """Note that the newest version has the content of an earlier one, in a commit of its own.

        So it is still known when Delta has removed the commits between them.
        """
        with self.commit_metadata(restored(version)):
            self._alter(name, f"SET TBLPROPERTIES ('{_VOUCHED_PROPERTY}' = '{version}')")

    def _history(self, name: str, limit: int) -> list[Commit]:
        rows = self.delta(name).history(limit).select("version", *_TOLD)
        return [Commit.of(*row) for row in rows.collect()]

    @contextmanager
    def commit_metadata(self, metadata: str) -> Iterator[None]:
        """Mark Delta commits made inside the block that take no writer options (restore)."""
        with settings(self.spark, {"spark.databricks.delta.commitInfo.userMetadata": metadata}):
            yield

    # -- schema ---------------------------------------------------------------------------------

    def _table_mode(self, table: Table) -> str:
        return "both" if table.scope == "lake" else self.mode

    def _check_and_migrate(self, name: str, table: Table) -> bool:
        detail = self.delta(name).detail().select("properties", "clusteringColumns").collect()[0]
        properties = detail["properties"]
        address = self.address(name)
        found_mode = properties.get(_MODE_PROPERTY)
        if found_mode != self._table_mode(table):
            raise LakeError(
                f"table {address} is of mode {found_mode!r}, not {self._table_mode(table)!r}: "
                "give the lake another root"
            )
        found = int(properties.get(_VERSION_PROPERTY, "1"))
        if found > table.version:
            raise LakeError(
                f"table {address} has schema version {found}, this recs knows {table.version}: "
                "install a newer recs"
            )
        if found < table.first:
            raise LakeError(
                f"table {address} has schema version {found}, and this recs begins with "
                f"{table.first}: give the lake another root, and deliver the raw data again"
            )
        changes = list(self._changes(table, properties, detail["clusteringColumns"]))
        if found < table.version:
            self._add_columns(name)
        for change in changes:
            self._alter(name, change)
        return bool(changes)

    def _changes(
        self, table: Table, properties: Mapping[str, str], clustering: Sequence[str]
    ) -> Iterator[str]:
        """Tell, as ends of ALTER TABLE, what a table lacks that this recs would make it with.

        Properties and clustering that somebody has given other values keep them.
        """
        for check, condition in table.checks.items():
            if f"delta.constraints.{check}".lower() not in {key.lower() for key in properties}:
                yield f"ADD CONSTRAINT {check} CHECK ({condition})"
        if table.cluster_by and not clustering:
            yield f"CLUSTER BY ({', '.join(table.cluster_by)})"
        wanted = {k: v for k, v in table.all_properties.items() if k not in properties}
        if int(properties.get(_VERSION_PROPERTY, "1")) != table.version:
            wanted[_VERSION_PROPERTY] = str(table.version)
        if wanted:
            pairs = ", ".join(f"'{key}' = '{value}'" for key, value in wanted.items())
            yield f"SET TBLPROPERTIES ({pairs})"

    def _add_columns(self, name: str) -> None:
        # An empty append that may widen the schema adds the columns without any SQL text.
        empty = self.load(name).limit(0)
        writer = empty.write.format("delta").mode("append").option("mergeSchema", "true")
        if self.location.catalog is not None:
            writer.saveAsTable(self.address(name))
        else:
            writer.save(self.address(name))

    def _alter(self, name: str, change: str) -> None:
        """Alter a table; ``change`` is made of what :mod:`recs.schema` says alone."""
        target = self.address(name)
        if self.location.catalog is None:
            # Quoted: Delta's own statements take no IDENTIFIER clause.
            target = f"delta.`{target.replace('`', '``')}`"
        self.spark.sql(f"ALTER TABLE {target} {change}")
