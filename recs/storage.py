"""Files on storage that every host reaches, behind one call.

Spark and Hadoop name S3 ``s3a://`` and Azure ``abfss://``; fsspec names them ``s3://`` and
``abfs://``. Databricks volumes and DBFS are mounted folders. This module is the only place that
knows the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
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

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")

#: Scheme, host with login, and path of a URI. What urllib refuses as a URI has to be told too,
#: without its secrets.
_URI = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*:)?)//([^/?#]*)([^?#]*)")

#: Schemes whose host has no port: what follows a colon there is a secret, a slash in it or not.
_WITHOUT_PORT = ("s3", "s3a", "gs", "abfs", "abfss")


class StorageError(UserError):
    """A path or URI that recs will not open."""


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


def folder_name(run_id: str) -> str:
    """Return a run's id as the name of a folder: HDFS takes no colons."""
    return run_id.replace(":", "_")


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
        fs = fsspec.filesystem(protocol)
    except ImportError as error:
        raise StorageError(f"{scheme}:// needs one more package: {error}") from error
    return fs, fs._strip_protocol(protocol + uri[len(scheme) :])


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
