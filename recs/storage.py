"""Files on storage that every host reaches, behind one call.

Spark and Hadoop name S3 ``s3a://`` and Azure ``abfss://``; fsspec names them ``s3://`` and
``abfs://``. Databricks volumes and DBFS are mounted folders. This module is the only place that
knows the difference.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO
from uuid import uuid4

import fsspec

from recs.errors import UserError

#: URI schemes that a lake, an input or a working folder may have, and fsspec's name for each.
SCHEMES = {
    "": "file",
    "file": "file",
    "s3": "s3",
    "s3a": "s3",
    "abfss": "abfs",
    "abfs": "abfs",
    "gs": "gs",
    "dbfs": "file",
    "hdfs": "hdfs",
}

#: fsspec's names of storage that has no folders, and where an upload is there whole or not at all.
_OBJECT_STORES = ("s3", "abfs", "gs")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")

#: Scheme, host with login, and path of a URI. What urllib refuses as a URI has to be told too,
#: without its secrets.
_URI = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*:)?)//([^/?#]*)([^?#]*)")

#: Schemes whose host has no port: what follows a colon there is a secret, a slash in it or not.
_WITHOUT_PORT = ("s3", "s3a", "gs", "abfs", "abfss")


class StorageError(UserError):
    """A path, URI or catalog that recs will not open."""


def check_uri(uri: str) -> str:
    """Return ``uri`` unchanged, or refuse it.

    Raises
    ------
    StorageError
        If the scheme is not in :data:`SCHEMES`, if the URI carries a user name or password, or if
        it holds a control character, or spaces at an end.
    """
    if not uri or uri != uri.strip() or any(ord(c) < 32 for c in uri):
        raise StorageError(
            f"path {redact(uri.strip())!r} is empty, or holds control characters or spaces at an "
            "end; give a plain path"
        )
    scheme = _scheme(uri)
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES if name)
        raise StorageError(
            f"path {redact(uri)!r} has scheme {scheme!r}; use a local path or one of {known}"
        )
    found = _URI.match(uri)
    host = found[2] if found else ""
    login = host.rpartition("@")[0]
    # abfss://container@account.dfs.core.windows.net is an address, not a login.
    if ":" in (host if scheme in _WITHOUT_PORT else login) or (
        login and scheme not in ("abfss", "abfs")
    ):
        raise StorageError(
            f"path {redact(uri)!r} carries credentials; give them to Spark or the environment"
        )
    return uri


def check_catalog(name: str) -> str:
    """Return the name of a schema, or of a catalog and a schema, unchanged, or refuse it.

    Raises
    ------
    StorageError
        If it has more parts, or other characters than ASCII letters, digits, ``_`` and ``-``.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)?", name):
        raise StorageError(
            f"catalog {name!r} is no name: give 'schema' or 'catalog.schema', of letters, digits, "
            "hyphens and underscores"
        )
    return name


def redact(uri: str) -> str:
    """Return ``uri`` without a user name, password or query, for messages, logs and tables."""
    found = _URI.match(uri)
    if found is None or not found[2]:
        return uri
    scheme, host, path = found.groups()
    if re.search(r":(?!\d+$)[^@]*$", host) and "@" in path:  # a secret that holds a slash
        host, slash, path = path.rpartition("@")[2].partition("/")
        path = slash + path
    login, _, address = host.rpartition("@")
    keep_login = scheme.lower() in ("abfss:", "abfs:") and ":" not in login
    return f"{scheme}//{host if keep_login else address}{path}"


def redact_text(text: str) -> str:
    """Return ``text`` with the logins and queries of all URIs in it taken out."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+", lambda match: redact(match.group()), text)


def join(base: str, *parts: str) -> str:
    """Join path parts with ``/`` under a path or URI."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(path: str) -> str:
    """Return a local path from the root, ``~`` being the user's home; a URI as it is."""
    return path if has_scheme(path) else os.path.abspath(os.path.expanduser(path))


def folder_name(run_id: str) -> str:
    """Return a run's id as the name of a folder that no other id has.

    HDFS takes no colons, and no id has a ``~``.
    """
    return run_id.replace(":", "~")


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return fsspec's file system for ``uri`` and the path inside it.

    Raises
    ------
    StorageError
        As :func:`check_uri`; or when the package that reaches the scheme is not installed.
    """
    check_uri(uri)
    scheme = _scheme(uri)
    protocol = SCHEMES[scheme]
    if protocol == "file":
        path = uri
        if scheme == "file":
            # As Spark writes it, unquoted: a # or ? is of the name. A host may stand after "//".
            path = re.sub(r"^file:(//[^/]*)?", "", uri, flags=re.IGNORECASE)
        if scheme == "dbfs":
            path = "/dbfs/" + uri.split(":", 1)[1].lstrip("/")
        return fsspec.filesystem("file", auto_mkdir=True), path
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise StorageError(f"{scheme}:// needs one more package: {error}") from error
    url = protocol + uri[len(scheme) :]
    # The account of abfss://box@ACCOUNT… and the host of hdfs://HOST:PORT are of the file system.
    # What others write, as Spark and other processes do, is missing in a cached listing.
    fs = kind(**kind._get_kwargs_from_urls(url), use_listings_cache=False)
    return fs, fs._strip_protocol(url)


def may_exist(uri: str) -> bool:
    """Tell whether a path or glob finds anything; True of remote ones, which are not looked at."""
    if not is_local(uri):
        return True
    fs, path = filesystem(uri)
    return bool(fs.exists(path) or fs.glob(path))


def exists(uri: str) -> bool:
    """Tell whether there is a file or folder."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def is_local(uri: str) -> bool:
    """Tell whether a path or URI is of this machine's own file system."""
    return SCHEMES[_scheme(uri)] == "file"


def has_scheme(path: str) -> bool:
    """Tell whether a path is a URI."""
    return bool(_scheme(path))


def is_hidden(name: str) -> bool:
    """Tell whether Spark passes over a file or folder of this name."""
    # Folders such as _day=3 are partitions.
    return name not in (".", "..") and (
        name.startswith(".") or (name.startswith("_") and "=" not in name)
    )


def write_file(uri: str, content: bytes) -> None:
    """Write a file, whole or not at all; its folders are made."""
    with writing(uri) as file:
        file.write(content)


@contextmanager
def writing(uri: str) -> Iterator[IO[bytes]]:
    """Open a file that is there when the block ends, and not if it fails; its folders are made.

    Two may write the same file at once, as attempts at one task do: it is that of the last to end.
    """
    fs, path = filesystem(uri)
    make = _upload if SCHEMES[_scheme(uri)] in _OBJECT_STORES else _move
    with make(fs, path) as file:
        yield file


@contextmanager
def _upload(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[IO[bytes]]:
    """Open an object, which is there once it is closed, whole: a move would copy and delete it."""
    file = fs.open(path, "wb")
    try:
        yield file
        file.close()
    except BaseException:
        # An open file closes itself when it is collected, and what it has would be there after all.
        # (With autocommit=False adlfs makes it there too, and s3fs takes three requests.)
        file.closed = True
        with suppress(Exception):  # what went wrong before is what matters
            file.discard()
        raise


@contextmanager
def _move(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[IO[bytes]]:
    """Open a file beside its place, to which it is moved in one step."""
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    part = f"{path}.{uuid4().hex}.part"
    try:
        with fs.open(part, "wb") as file:
            yield file
        fs.mv(part, path)
    except BaseException:
        if fs.exists(part):
            fs.rm(part)
        raise


def read_file(uri: str) -> bytes | None:
    """Return a file's content; None where there is none."""
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path)) if fs.exists(path) else None


def _scheme(uri: str) -> str:
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else ""


def children(uri: str) -> list[str]:
    """Return the names of what lies in a folder, sorted; none where there is no folder."""
    fs, path = filesystem(uri)
    try:
        found = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name.rstrip("/").rpartition("/")[2] for name in found)


def seconds_since_change(uri: str) -> float:
    """Return how long ago a file of a folder, or of one in it, was written; inf if none was."""
    fs, path = filesystem(uri)
    times = [fs.modified(file).timestamp() for file in fs.find(path, maxdepth=2)]
    return time.time() - max(times) if times else math.inf


def remove_tree(uri: str) -> None:
    """Remove a folder and all in it, if it is there."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@contextmanager
def new_folder(uri: str) -> Iterator[None]:
    """Let the block fill a folder, of which nothing is there before, nor after it has failed."""
    remove_tree(uri)
    try:
        yield
    except BaseException:
        remove_tree(uri)
        raise
