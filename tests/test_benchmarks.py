"""What all benchmarks share: arguments that are told apart, and results that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import common


def given(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, str]:
    monkeypatch.setattr("sys.argv", ["sizes.py", *arguments])
    return common.arguments("users", "items")


@pytest.mark.parametrize(
    "argument, message",
    [
        ("user=3", "no argument 'user'; there are users, items, data, keep"),
        ("users", "'users' is not key=value"),
        ("keep=yes", "keep=yes is not keep=true"),
    ],
)
def test_arguments_that_are_not_known_are_refused(
    monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        given(monkeypatch, "items=2", argument)


def test_only_a_whole_run_is_kept_without_asking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)

    def kept(seconds: int, *arguments: str) -> int:
        common.report("sizes", {"seconds": seconds}, {}, given(monkeypatch, *arguments))
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]["seconds"] == seconds
        return json.loads((tmp_path / "sizes.json").read_text())["figures"]["seconds"]

    assert kept(1, "data=raw", "--json") == 1
    assert kept(2, "users=3") == 1
    assert kept(3, "users=3", "keep=true") == 3
