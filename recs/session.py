"""The Spark session, made in one place for a laptop, spark-submit and Databricks alike."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Delta's jar for Spark 4.0; Spark's own Ivy fetches it from Maven Central and keeps it.
DELTA_PACKAGE = "io.delta:delta-spark_4.0_2.13:4.4.0"

# Only Maven Central: Spark's default chain also asks a host that is often unreachable, once a jar.
_IVY_SETTINGS = """\
<ivysettings>
  <settings defaultResolver="central"/>
  <caches defaultCacheDir="{ivy}/cache"/>
  <resolvers>
    <ibiblio name="central" m2compatible="true" root="https://repo1.maven.org/maven2/"/>
  </resolvers>
</ivysettings>
"""

#: Settings that a session needs for Delta, beside its jar.
DELTA_CONF = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}

_EVERYWHERE = {
    # Times without a zone are UTC, on whatever machine they are read.
    "spark.sql.session.timeZone": "UTC",
    # Batches for Python end by their rows alone: to end them by bytes, Spark asks every column for
    # its size after each row, which takes longer than the rest of the way.
    "spark.sql.execution.arrow.maxBytesPerBatch": str(2**31 - 1),
    # The JVM never compiles a method of more than 8,000 bytes: Spark then has to make smaller ones.
    "spark.sql.codegen.hugeMethodLimit": "8000",
    # Drawn items hardly repeat within a page: looking each up in a dictionary only takes time.
    "parquet.enable.dictionary#negatives.list.element": "false",
}


def _driver_gib() -> int:
    """Return a quarter of the machine's memory: the rest is for Python workers and mapped files."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(2, min(16, memory // 2**32))


# What suits one machine; a cluster's own settings are never touched.
_LOCAL_CONF = {
    "spark.python.daemon.module": "recs.daemon",
    "spark.driver.memory": f"{_driver_gib()}g",
    # Stages are long rows of short-lived objects, where pauses do not matter and throughput does.
    "spark.driver.extraJavaOptions": "-XX:+UseParallelGC",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # Spark puts small partitions together again; large ones are sorted without spilling.
    "spark.sql.shuffle.partitions": str(4 * (os.cpu_count() or 2)),
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "50000",
}


class SessionError(RuntimeError):
    """Spark could not be started, or lacks Delta."""


def get_session(
    app_name: str = "recs",
    *,
    master: str | None = None,
    conf: Mapping[str, str] | None = None,
    verbose: bool = False,
) -> SparkSession:
    """Return the Spark session to work in.

    A session that is there already (Databricks, a notebook, a test) is taken as it is. Under
    ``spark-submit`` the master and the jars are those of the submission. Otherwise Spark starts on
    this machine with Delta's jars; what the JVM prints is shown only where it does not start, or
    with ``verbose``.

    Python workers run the interpreter of the driver on one machine; on a cluster, where another
    path may hold, ``PYSPARK_PYTHON`` of the environment is left alone.

    Parameters
    ----------
    app_name
        Name shown by the cluster.
    master
        Spark master URL; by default the submission's, else ``local[*]``.
    conf
        Further Spark settings; they win over those chosen here.
    verbose
        Show the JVM's own messages.

    Raises
    ------
    SessionError
        If Java is missing or too old, Spark does not start, or Delta's classes are not loaded.
    """
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        _require_delta(active)
        for key, value in {**_EVERYWHERE, **(conf or {})}.items():
            if active.conf.isModifiable(key) or key.startswith("parquet."):
                active.conf.set(key, value)
        return active

    # The gateway is that of a JVM which was there first, as on YARN's nodes.
    signs = "SPARK_ENV_LOADED", "PYSPARK_GATEWAY_PORT", "DATABRICKS_RUNTIME_VERSION"
    submitted = any(name in os.environ for name in signs)
    master = master or (None if submitted else "local[*]")
    local = master is not None and master.startswith("local")
    if local:
        _require_java()
        os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    builder = SparkSession.builder.appName(app_name)
    if master:
        builder = builder.master(master)
    settings = dict(_EVERYWHERE)
    if local:
        settings |= _LOCAL_CONF
    if not submitted:
        settings |= DELTA_CONF | {"spark.jars.packages": DELTA_PACKAGE}
        settings |= {"spark.jars.ivySettings": str(_ivy_settings())}
    for key, value in {**settings, **(conf or {})}.items():
        builder = builder.config(key, value)

    # Without a name: it is gone with the JVM, which writes to it as long as it lives.
    with tempfile.TemporaryFile() as log:
        try:
            with _jvm_output(None if verbose or submitted else log.fileno()):
                session = builder.getOrCreate()
        except Exception as error:
            tail = os.pread(log.fileno(), 2000, max(0, os.fstat(log.fileno()).st_size - 2000))
            told = tail.decode(errors="replace")
            raise SessionError(f"Spark did not start: {error}\n{told}") from error
    _require_delta(session)
    if local:
        _keep_jars_off_the_workers_path(session)
    return session


def _keep_jars_off_the_workers_path(session: SparkSession) -> None:
    """Leave Delta's jars out of ``sys.path`` of Python workers, where Spark puts all packages.

    They hold no Python, and every task reads each of them anew: some 0.15 s a task.
    """
    includes = session.sparkContext._python_includes
    if includes is not None:
        includes[:] = [name for name in includes if not name.endswith(".jar")]


def _require_java() -> None:
    java = os.path.join(os.environ["JAVA_HOME"], "bin", "java") if "JAVA_HOME" in os.environ else ""
    java = java if java and os.path.exists(java) else shutil.which("java") or ""
    if not java:
        raise SessionError(
            "Java is missing: install Java 17 (Debian: apt-get install openjdk-17-jre-headless)"
        )
    found = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', found)
    if not version or int(version.group(1)) < 17:
        raise SessionError(f"Java 17 or newer is needed, {java} is: {found.splitlines()[:1]}")


def _require_delta(session: SparkSession) -> None:
    extensions = session.conf.get("spark.sql.extensions", "") or ""
    on_databricks = "DATABRICKS_RUNTIME_VERSION" in os.environ
    if "DeltaSparkSessionExtension" not in extensions and not on_databricks:
        raise SessionError(
            f"the Spark session lacks Delta: start it with --packages {DELTA_PACKAGE} and "
            + " ".join(f"--conf {key}={value}" for key, value in DELTA_CONF.items())
        )


def _ivy_settings() -> Path:
    home = Path(os.environ.get("RECS_IVY_HOME", Path.home() / ".ivy2.5.2"))
    home.mkdir(parents=True, exist_ok=True)
    path = home / "recs-ivysettings.xml"
    path.write_text(_IVY_SETTINGS.format(ivy=home))
    return path


def num_tasks(session: SparkSession) -> int:
    """Return how many tasks a shuffle is cut into."""
    value = session.conf.get("spark.sql.shuffle.partitions", "") or ""
    return int(value) if value.isdigit() else 3 * session.sparkContext.defaultParallelism


@contextmanager
def settings(session: SparkSession, values: Mapping[str, str]) -> Iterator[None]:
    """Set settings of the session, and put back what was there before when the block ends."""
    before = {key: session.conf.get(key, None) for key in values}
    for key, value in values.items():
        session.conf.set(key, value)
    try:
        yield
    finally:
        for key, earlier in before.items():
            if earlier is None:
                session.conf.unset(key)
            else:
                session.conf.set(key, earlier)


@contextmanager
def _jvm_output(log: int | None) -> Iterator[None]:
    """Send what the JVM started inside the block prints, for its whole life, to the file ``log``.

    Ivy and log4j write to the inherited file descriptors before any Spark setting is read, so the
    descriptors themselves are swapped while the JVM starts.
    """
    if log is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield
    finally:
        for target, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, target)
            os.close(copy)
