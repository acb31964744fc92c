"""Files are there whole or not at all, on whatever storage."""

from __future__ import annotations

import gc
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.arrow import HadoopFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from recs import storage


class Upload(AbstractBufferedFile):
    """An object in the making, in parts: as s3fs and gcsfs it may be discarded."""

    def _initiate_upload(self) -> None:
        self.parts: list[bytes] = []
        self.fs.uploads[id(self)] = self.parts

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts.append(self.buffer.getvalue())
        if final:
            if b"refused" in self.parts:
                raise OSError("no space")
            self.fs.store[self.path] = MemoryFile(self.fs, self.path, b"".join(self.parts))
            self.discard()
        return True

    def discard(self) -> None:
        self.fs.uploads.pop(id(self), None)


class ObjectStore(MemoryFileSystem):
    """Objects without folders, in a file system that only uploads them whole."""

    protocol = "s3"
    store: dict[str, Any] = {}
    uploads: dict[int, list[bytes]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").strip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            return Upload(self, path, mode, block_size=4)
        return super()._open(path, mode, **options)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("an object store has no folders; s3fs would make a bucket")

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        raise AssertionError("an object is copied")


def register(monkeypatch: pytest.MonkeyPatch, protocol: str, kind: type) -> None:
    registered = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(registered, protocol, kind)


@pytest.fixture(params=["local", "remote", "object store"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A folder that is not there yet; the remote one lies on fsspec's file system in memory."""
    if request.param == "local":
        yield str(tmp_path / "new")
    elif request.param == "remote":
        monkeypatch.setitem(storage.SCHEMES, "s3", "memory")
        yield "s3://bucket/new"
        fsspec.filesystem("memory").rm("/bucket", recursive=True)
    else:
        register(monkeypatch, "s3", ObjectStore)
        yield "s3://bucket/new"
        assert not ObjectStore.uploads
        ObjectStore.store.clear()


def _files(folder: str) -> dict[str, bytes]:
    fs, path = storage.filesystem(folder)
    return {name.rpartition("/")[2]: fs.cat_file(name) for name in fs.find(path)}


def test_two_may_write_a_file_at_once(folder: str) -> None:
    uri = storage.join(folder, "deep", "file")
    with storage.writing(uri) as first, storage.writing(uri) as second:
        first.write(b"from the first")
        second.write(b"second")
    assert _files(folder) == {"file": b"from the first"}  # which ended last


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_what_was_there(
    folder: str, failure: type[BaseException]
) -> None:
    uri = storage.join(folder, "file")
    for before in ({}, {"file": b"old"}):
        if before:
            storage.write_file(uri, b"old")
        with pytest.raises(failure), storage.writing(uri) as file:
            file.write(b"half of the new")
            raise failure
        del file
        gc.collect()
        assert _files(folder) == before


def test_a_write_that_the_store_refuses_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(monkeypatch, "s3", ObjectStore)
    storage.write_file("s3://bucket/file", b"old")
    with pytest.raises(OSError, match="no space"):
        storage.write_file("s3://bucket/file", b"refused")
    gc.collect()
    assert _files("s3://bucket") == {"file": b"old"}
    assert not ObjectStore.uploads
    ObjectStore.store.clear()


class Azure(fsspec.AbstractFileSystem):
    """A file system that is of an account, as adlfs has it."""

    protocol = ("abfs", "abfss")

    @staticmethod
    def _get_kwargs_from_urls(url: str) -> dict[str, str]:
        found = re.match(r"abfss?://[^@/]*@([^./]+)[.]dfs[.]core[.]windows[.]net", url)
        return {"account_name": found[1]} if found else {}


class Hadoop(fsspec.AbstractFileSystem):
    """A file system that is of a host, whose URIs are read as fsspec reads them."""

    protocol = "hdfs"
    _get_kwargs_from_urls = staticmethod(HadoopFileSystem._get_kwargs_from_urls)


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("abfss://box@mine.dfs.core.windows.net/lake", {"account_name": "mine"}),
        ("abfs://box@other.dfs.core.windows.net/lake", {"account_name": "other"}),
        ("abfss://box/lake", {}),
        ("hdfs://node:8021/lake", {"host": "node", "port": 8021}),
        ("hdfs://cluster/lake", {"host": "cluster"}),
        ("hdfs:///lake", {}),
    ],
)
def test_a_file_system_is_of_the_account_or_host_that_its_uri_names(
    monkeypatch: pytest.MonkeyPatch, uri: str, options: dict[str, Any]
) -> None:
    register(monkeypatch, "abfs", Azure)
    register(monkeypatch, "hdfs", Hadoop)
    fs, _ = storage.filesystem(uri)
    assert fs.storage_options == options | {"use_listings_cache": False}


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:/lake #1/a?b", "/lake #1/a?b"),
        ("file:///lake #1", "/lake #1"),
        ("file://localhost/lake", "/lake"),
        ("/lake #1/a?b", "/lake #1/a?b"),
    ],
)
def test_names_of_local_files_are_taken_whole(uri: str, path: str) -> None:
    assert storage.filesystem(uri)[1] == path


def test_each_run_has_a_folder_of_its_own() -> None:
    ids = [
        "a:b",
        "a_b",
        "a-b",
        "a+b",
        "a.b",
        "a:_b",
        "a_:b",
        "scheduled__2026-01-01T00:00:00+00:00",
    ]
    names = [storage.folder_name(run_id) for run_id in ids]
    assert len(set(names)) == len(ids)
    assert not any(":" in name or "/" in name for name in names)
    plain = [run_id for run_id in ids if ":" not in run_id]
    assert [storage.folder_name(run_id) for run_id in plain] == plain


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("see https://me:secret@host/a?token=x#y now", "see https://host/a now"),
        ("s3a://key:secret@bucket", "s3a://bucket"),
        (
            "abfss://box@account.dfs.core.windows.net/a",
            "abfss://box@account.dfs.core.windows.net/a",
        ),
        ("abfss://box:secret@account/a", "abfss://account/a"),
        ("s3a://key:sec/ret@bucket/a", "s3a://bucket/a"),
        ("hdfs://node:8020/me@home", "hdfs://node:8020/me@home"),
        # A local name may hold anything.
        ("file:///data/a#b?c.csv", "file:///data/a#b?c.csv"),
        # What is no URI to urllib.
        ("a row of 'http://[x' and http://me:secret@[y", "a row of 'http://[x' and http://[y"),
        ("http://me:secret@\u2100.com/a", "http://\u2100.com/a"),
    ],
)
def test_any_text_is_told_without_logins_and_queries(text: str, told: str) -> None:
    assert storage.redact_text(text) == told
