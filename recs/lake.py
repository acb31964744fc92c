"""Delta tables of one lake: where they live, how they are made, read at a version and written.

Delta has no transaction over several tables. Here a row of the table ``runs`` is the commit point
(:mod:`recs.runs`): :meth:`Lake.read` gives the version of a table that the newest finished run
names, so that what an unfinished run left is never seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from recs import delta_log
from recs.errors import UserError
from recs.schema import TABLES, Mode, Table
from recs.storage import check_catalog, check_uri, folder_name, join

_MODE_PROPERTY = "recs.mode"
_VERSION_PROPERTY = "recs.schema_version"
_RECENT_COMMITS = 20

Write = Literal["append", "overwrite"]


class LakeError(UserError):
    """A table is missing, of another mode, or of a newer schema."""


@dataclass(frozen=True)
class Commit:
    """A commit of a Delta table: its version, its author's mark, rows it wrote and deleted."""

    version: int
    mark: str | None
    rows: int
    deleted: int

    @classmethod
    def of(cls, version: int, mark: str | None, metrics: Mapping[str, str] | None) -> Commit:
        """Return a commit of Delta's ``userMetadata`` and ``operationMetrics``."""
        metrics = metrics or {}
        rows, deleted = metrics.get("numOutputRows", 0), metrics.get("numTargetRowsDeleted", 0)
        return cls(version, mark, int(rows), int(deleted))


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

    def address(self, table: Table, mode: Mode) -> str:
        """Return the table's path, or its full name in the catalog."""
        if self.catalog is not None:
            prefix = f"{mode}_" if table.scope == "mode" else ""
            parts = (f"`{part}`" if "-" in part else part for part in self.catalog.split("."))
            return f"{'.'.join(parts)}.{prefix}{table.name}"
        folder = mode if table.scope == "mode" else "lake"
        return join(self.root, folder, table.name)

    def training_set(self, mode: Mode, run_id: str) -> str:
        """Return the folder of the training set that a run exports."""
        return join(self.root, "training_sets", mode, folder_name(run_id))

    def model(self, mode: Mode, name: str, run_id: str) -> str:
        """Return the folder that a run trains a network in."""
        return join(self.root, "models", mode, name, folder_name(run_id))

    def study(self, mode: Mode, name: str, run_id: str) -> str:
        """Return the folder of a run's search of a network's settings."""
        return join(self.root, "studies", mode, name, folder_name(run_id))

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
        ``backtest`` or ``serve``; picks the tables of scope ``mode``.
    """

    def __init__(self, spark: SparkSession, location: Location, mode: Mode) -> None:
        self.spark = spark
        self.location = location
        self.mode = mode
        self._checked: set[str] = set()  # asking Delta for properties takes time; once is enough
        self._reads_log = location.catalog is None and delta_log.is_readable(location.root)
        #: The ledger's Delta version as last read, and its rows; see :class:`recs.runs.Ledger`.
        self.ledger: tuple[int, list[Row]] | None = None

    # -- names ----------------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """Return the path or full name of a table of :data:`recs.schema.TABLES`."""
        return self.location.address(TABLES[name], self.mode)

    def key(self, name: str) -> str:
        """Return the name under which ``runs`` knows a table: ``events``, ``serve/ranks`` …"""
        return f"{self.mode}/{name}" if TABLES[name].scope == "mode" else name

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
        table = TABLES[name]
        if name in self._checked:
            return False
        if self.exists(name):
            migrated = self._check_and_migrate(table)
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
            # Statistics of other columns take time to collect, and no reader skips files by them.
            skipped_by = ",".join((*table.cluster_by, "run_id"))
            builder = builder.clusterBy(*table.cluster_by)
            builder = builder.property("delta.dataSkippingStatsColumns", skipped_by)
        for check, condition in table.checks.items():
            builder = builder.property(f"delta.constraints.{check}", condition)
        for key, value in table.properties.items():
            builder = builder.property(key, value)
        builder = builder.property(_VERSION_PROPERTY, str(table.version))
        builder.property(_MODE_PROPERTY, self._table_mode(table)).execute()
        self._checked.add(name)
        return True

    def load(self, name: str, version: int | None = None) -> DataFrame:
        """Return a table at a Delta version (None: the newest, committed or not)."""
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        address = self.address(name)
        df = reader.table(address) if self.location.catalog is not None else reader.load(address)
        missing = [c.name for c in TABLES[name].columns if c.name not in df.columns]
        if missing:
            raise LakeError(
                f"table {address} has no column {missing[0]!r}, for another recs wrote it: give "
                "the lake another root, and deliver the raw data again"
            )
        # A version written before a migration reads null in the columns that came later.
        later = [column for column in TABLES[name].added if column.name not in df.columns]
        return df.withColumns({c.name: F.lit(None).cast(c.type) for c in later}) if later else df

    def save(
        self, name: str, df: DataFrame, how: Write, *, options: Mapping[str, str] | None = None
    ) -> None:
        """Write ``df`` (all columns of the table, any order) in one Delta commit."""
        columns = [column.name for column in TABLES[name].all_columns]
        # Without a condition, Delta would drop the table's clustering with its rows.
        all_rows = {"replaceWhere": "true"} if how == "overwrite" else {}
        writer = df.select(*columns).write.format("delta").mode(how)
        writer = writer.options(**all_rows, **(options or {}))
        if self.location.catalog is not None:
            writer.saveAsTable(self.address(name))
        else:
            writer.save(self.address(name))

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
        """Put the table's content back to a version, as a new version."""
        self.delta(name).restoreToVersion(version).collect()

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
            return [
                Commit.of(version, info.get("userMetadata"), info.get("operationMetrics"))
                for version, info in told
            ]
        commits = self._history(name, _RECENT_COMMITS)
        wanted = commits[0].version - after
        if wanted > len(commits):
            commits = self._history(name, wanted)
        return sorted((c for c in commits if c.version > after), key=attrgetter("version"))

    def _history(self, name: str, limit: int) -> list[Commit]:
        rows = self.delta(name).history(limit).select("version", "userMetadata", "operationMetrics")
        return [Commit.of(*row) for row in rows.collect()]

    @contextmanager
    def commit_metadata(self, metadata: str) -> Iterator[None]:
        """Mark Delta commits made inside the block that take no writer options (restore)."""
        key = "spark.databricks.delta.commitInfo.userMetadata"
        self.spark.conf.set(key, metadata)
        try:
            yield
        finally:
            self.spark.conf.unset(key)

    # -- schema ---------------------------------------------------------------------------------

    def _table_mode(self, table: Table) -> str:
        return self.mode if table.scope == "mode" else "both"

    def _check_and_migrate(self, table: Table) -> bool:
        properties = self.delta(table.name).detail().select("properties").collect()[0][0]
        address = self.address(table.name)
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
        if found < table.version:
            self._migrate(table)
        return found < table.version

    def _migrate(self, table: Table) -> None:
        # An empty append that may widen the schema adds the columns without any SQL text.
        empty = self.load(table.name).limit(0)
        writer = empty.write.format("delta").mode("append").option("mergeSchema", "true")
        target = self.address(table.name)
        if self.location.catalog is not None:
            writer.saveAsTable(target)
        else:
            writer.save(target)
            target = f"delta.`{target}`"
        self.spark.sql(
            f"ALTER TABLE IDENTIFIER(:target) SET TBLPROPERTIES "
            f"('{_VERSION_PROPERTY}' = '{table.version}')",
            args={"target": target},
        )
