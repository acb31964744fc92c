"""The Spark session, made in one place for a laptop, spark-submit and Databricks alike."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from recs.errors import UserError, tell
from recs.storage import write_file

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("recs")

_DELTA_VERSION = "4.4.0"
_DELTA_SPARKS = ("4.0", "4.1", "4.2")  # that this Delta has jars for

# Only Maven Central, which is Ivy's own default: Spark's chain also asks a host that is often
# unreachable, once a jar.
_IVY_SETTINGS = """\
<ivysettings>
  <settings defaultResolver="central"/>
  <resolvers>
    <ibiblio name="central" m2compatible="true"/>
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
    # Spark's own choice, 12 bytes for Hive of old, is dear to write and has no statistics.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # Values that hardly repeat within a page: looking each up in a dictionary only takes time.
    "parquet.enable.dictionary#negatives.list.element": "false",
    "parquet.enable.dictionary#event_id": "false",
    "parquet.enable.dictionary#line": "false",
    "parquet.enable.dictionary#timestamp": "false",
}


def _driver_gib() -> int:
    """Return a quarter of the machine's memory: the rest is for Python workers and mapped files."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(2, min(16, memory // 2**32))


def _local_conf() -> dict[str, str]:
    """Return what suits one machine; a cluster's own settings are never touched."""
    return {
        "spark.python.daemon.module": "recs.daemon",
        "spark.driver.memory": f"{_driver_gib()}g",
        # Stages are long rows of short-lived objects: throughput matters, pauses do not.
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


class SessionError(UserError):
    """Spark could not be started, lacks Delta, or cannot read all names of files."""


def delta_package(spark_version: str | None = None) -> str:
    """Return the Maven coordinates of Delta's jar for a Spark, by default the PySpark that is here.

    Spark's own Ivy fetches it from Maven Central and keeps it.

    Raises
    ------
    SessionError
        If there is no Delta for that Spark.
    """
    import pyspark

    version = spark_version or pyspark.__version__
    spark = ".".join(version.split(".")[:2])
    if spark not in _DELTA_SPARKS:
        known = ", ".join(_DELTA_SPARKS)
        raise SessionError(
            f"no Delta is known for Spark {version}: install PySpark {known}, or name "
            "Delta's package for it in spark.jars.packages"
        )
    return f"io.delta:delta-spark_{spark}_2.13:{_DELTA_VERSION}"


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

    A handler of SIGINT that the program has set stays; Spark's own would call the JVM amid another
    call of it.

    Python workers run the interpreter of the driver on one machine; on a cluster, where another
    path may hold, ``PYSPARK_PYTHON`` of the environment is left alone.

    Parameters
    ----------
    app_name
        Name shown by the cluster.
    master
        Spark master URL; by default the submission's, else ``local[*]``.
    conf
        Further Spark settings; they win over those chosen here. Packages are added to Delta's.
    verbose
        Show the JVM's own messages.

    Raises
    ------
    SessionError
        If Java is missing, too old or too new, no Delta is known for this Spark, Spark does not
        start, Delta's classes are not loaded, or the JVM of another's session would pass over
        files whose names are not ASCII.
    """
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        _require_delta(active)
        _check_names(active)
        for key, value in {**_EVERYWHERE, **(conf or {})}.items():
            if active.conf.isModifiable(key) or key.startswith("parquet."):
                active.conf.set(key, value)
            elif active.conf.get(key, None) != value:
                log.warning("%s=%s comes too late for the Spark session that is there", key, value)
        return active

    # The gateway is that of a JVM which was there first, as on YARN's nodes.
    signs = "SPARK_ENV_LOADED", "PYSPARK_GATEWAY_PORT", "DATABRICKS_RUNTIME_VERSION"
    submitted = any(name in os.environ for name in signs)
    master = master or (None if submitted else "local[*]")
    local = master is not None and master.startswith("local")
    if local:
        _require_java()
        os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    settings = {"spark.app.name": app_name, **_EVERYWHERE}
    if master:
        settings |= {"spark.master": master}
    if local:
        settings |= _local_conf()
    if not submitted:
        ivy = _ivy_home()
        settings |= DELTA_CONF | {"spark.jars.ivy": str(ivy)}
        settings |= {"spark.jars.ivySettings": str(ivy / _IVY_FILE)}
    settings |= conf or {}
    packages = settings.get("spark.jars.packages", "")
    if not submitted and "delta-spark" not in packages:
        settings["spark.jars.packages"] = ",".join(filter(None, [delta_package(), packages]))

    try:
        with (
            _jvm_output(None if verbose or submitted else _printed()),
            _utf8_names(),
            _own_handler(),
        ):
            SparkContext.getOrCreate(SparkConf().setAll(list(settings.items())))
        builder = SparkSession.builder
        for key, value in settings.items():
            builder = builder.config(key, value)
        session = builder.getOrCreate()
    except Exception as error:
        raise SessionError(f"Spark did not start: {_reason(error, _tail())}") from error
    _require_delta(session)
    _check_names(session)
    if local:
        _keep_jars_off_the_workers_path(session)
    return session


def num_tasks(spark: SparkSession) -> int:
    """Return how many tasks a shuffle is to have: ``spark.sql.shuffle.partitions``.

    Where that is no number, as Databricks' ``auto``, it is three times the default parallelism.
    """
    given = spark.conf.get("spark.sql.shuffle.partitions", "") or ""
    if given.isdigit():
        return int(given)
    from pyspark.sql import functions as F

    # By the parts that Spark makes of a range, for Spark Connect has no context to ask.
    return 3 * spark.range(10_000).select(F.spark_partition_id()).distinct().count()


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
    version = re.search(r'^.*version "(\d+).*$', found, re.MULTILINE)
    # Hadoop asks Java for what is gone since 23 (HADOOP-19212).
    if not version or not 17 <= int(version.group(1)) < 23:
        told = version[0] if version else "of no version"
        raise SessionError(f"Java 17 or 21 is needed, {java} is {told}: set JAVA_HOME to one")


def _require_delta(session: SparkSession) -> None:
    extensions = session.conf.get("spark.sql.extensions", "") or ""
    on_databricks = "DATABRICKS_RUNTIME_VERSION" in os.environ
    if "DeltaSparkSessionExtension" not in extensions and not on_databricks:
        raise SessionError(
            "the Spark session lacks Delta: start it with "
            f"--packages {delta_package(session.version)} and "
            + " ".join(f"--conf {key}={value}" for key, value in DELTA_CONF.items())
        )


def _check_names(session: SparkSession) -> None:
    """Refuse a JVM that reads names of files as ASCII: it passes over all others, silently.

    On a cluster, where files are seldom the driver's, it is only told.
    """
    jvm = getattr(session, "_jvm", None)
    if jvm is None:  # Spark Connect
        return
    encoding = jvm.java.lang.System.getProperty("sun.jnu.encoding")
    if os.name != "posix" or encoding is None or encoding.upper() == "UTF-8":
        return
    told = f"the JVM's file names are {encoding}: set LC_ALL=C.UTF-8"
    local = (session.sparkContext.master or "").startswith("local")
    if local and "DATABRICKS_RUNTIME_VERSION" not in os.environ:
        raise SessionError(told)
    log.warning(told)


@contextmanager
def _utf8_names() -> Iterator[None]:
    """Give what is started inside the block a locale of UTF-8, where it has another."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    locale = next(filter(None, names), "C")
    if re.search("utf-?8", locale, re.IGNORECASE) or sys.platform != "linux":
        yield
        return
    given = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = "C.UTF-8"
    try:
        yield
    finally:
        os.environ.pop("LC_ALL")
        if given is not None:
            os.environ["LC_ALL"] = given


@contextmanager
def _own_handler() -> Iterator[None]:
    """Put back the program's handler of SIGINT, where it has one, after the block."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        ours = handler not in (None, signal.default_int_handler)
        if ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


_IVY_FILE = "recs-ivysettings.xml"


def _ivy_home() -> Path:
    """Return the folder of Ivy's jars, with its settings in it."""
    home = Path(os.environ.get("RECS_IVY_HOME") or Path.home() / ".ivy2.5.2").absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
        file = home / _IVY_FILE
        if not file.exists() or file.read_text() != _IVY_SETTINGS:
            write_file(str(file), _IVY_SETTINGS.encode())  # whole: another start may be reading it
    except OSError as error:
        raise SessionError(
            f"{home}, where Delta's jars are kept, cannot be written ({error.strerror}): "
            "set RECS_IVY_HOME to a folder that can be written"
        ) from error
    return home


_TAIL = 20_000


@cache
def _printed() -> int:
    """Return the file that holds what the JVM prints in its whole life.

    It has no name, so that it is gone with the processes; Python workers make none.
    """
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _tail() -> bytes:
    size = os.fstat(_printed()).st_size
    return os.pread(_printed(), _TAIL, max(0, size - _TAIL))


def last_words() -> str:
    """Return the last error that the JVM of this process's session has printed, if any."""
    lines = _tail().decode(errors="replace").splitlines()
    told = [line.strip() for line in lines if re.search(r"Error\b|Exception\b", line)]
    return told[-1][:300] if told else ""


def _reason(error: Exception, output: bytes) -> str:
    """Return why Spark has not started, from the end of what the JVM printed if it has ended."""
    if "JAVA_GATEWAY_EXITED" not in str(error):
        return tell(error).message
    text = output.decode(errors="replace")
    thrown = re.findall(r"^(?:Exception in thread \S+|Caused by:) \S+?: (.*)", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line.strip() and line[0] not in "\t "]
    refused = [line for line in lines if re.match(r"Error|Invalid|Unrecognized", line)]
    reason = (thrown[-1:] or refused or lines[-1:] or [str(error)])[0]
    if "unresolved dependency" in reason:
        reason += (
            ", nor can it be fetched: give a repository that answers as spark.jars.repositories"
        )
    return reason


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
