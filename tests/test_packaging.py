"""The package as it is installed: light imports, shipped files, the make targets' complaints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipelines.resources import conf_folder

ROOT = Path(__file__).resolve().parents[1]


def _make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    "blocked, module",
    [
        (("pyspark", "torch", "numpy", "pyarrow"), "recs"),
        (("pyspark", "torch"), "recs.config"),
        (("pyspark", "torch"), "pipelines.cli"),
        (("pyspark", "torch", "pyarrow"), "pipelines.init"),
        (("torch",), "recs.data.synthetic"),
        (("torch", "petastorm", "safetensors", "optuna"), "pipelines.run"),
    ],
)
def test_imports_stay_light(blocked: tuple[str, ...], module: str) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_conf_is_found_in_a_checkout() -> None:
    assert conf_folder() == ROOT / "conf"


def test_wheel_ships_conf_where_it_is_looked_up(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("recs", "pipelines", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "conf" / "clusters").mkdir(exist_ok=True)
    (source / "conf" / "clusters" / "placed-by-test.yaml").write_text("{}\n")

    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shipped = {p.relative_to(source / "conf") for p in (source / "conf").rglob("*.yaml")}
    code = "from pipelines.resources import conf_folder; print(conf_folder())"
    environment = os.environ | {"PYTHONPATH": str(site)}
    found = subprocess.check_output(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True
    ).strip()
    assert Path(found) == site / "pipelines" / "conf"
    assert {p.relative_to(found) for p in Path(found).rglob("*.yaml")} == shipped


def test_missing_java_is_one_line(tmp_path: Path) -> None:
    done = _make("-C", str(ROOT), "java", JAVA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "Java 17 or 21 is missing" in done.stderr.splitlines()[0]
    assert "apt-get install" in done.stderr.splitlines()[0]


def test_a_java_that_spark_does_not_run_on_is_one_line(tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    for version, goes in (("11.0.2", False), ("17.0.9", True), ("21", True), ("25.0.1", False)):
        java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        java.chmod(0o755)
        done = _make("-C", str(ROOT), "java", JAVA_HOME=str(tmp_path))
        assert (done.returncode == 0) == goes, done.stderr


def test_wrong_python_is_one_line(tmp_path: Path) -> None:
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shim = tmp_path / "python3.11"  # as pyenv leaves one for a version that is not switched on
    shim.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    done = _make("-C", str(tmp_path), "install", f"PYTHON={shim}")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith("Python 3.11 with venv is missing")
    assert not (tmp_path / ".venv").exists()
