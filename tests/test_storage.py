"""Files are there whole or not at all, on whatever storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from recs import storage


@pytest.fixture(params=["local", "remote"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A folder that is not there yet; the remote one lies on fsspec's file system in memory."""
    if request.param == "local":
        yield str(tmp_path / "new")
        return
    monkeypatch.setitem(storage.SCHEMES, "s3", "memory")
    yield "s3://bucket/new"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


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
        assert _files(folder) == before


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
