"""Package metadata: honest ranges here, the exact tried versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "recs/__init__.py").read_text()).group(1)

# What `import recs`, the configuration and the command line need; no Spark, no torch.
BASE = ["fsspec>=2024.2", "pydantic>=2.7,<3", "pyyaml>=6,<7", "rich>=13,<16", "typer>=0.16,<1"]

EXTRAS = {
    # Everything up to SLIM, recommendations and metrics. Delta's jar is of the installed Spark
    # (recs/session.py); PyPI has a delta-spark 4.4.1 whose jars are not on Maven Central. That of
    # 4.4.0 refuses PySpark 4.2.1, which it runs on: there it is installed without dependencies.
    "spark": [
        "delta-spark==4.4.0",
        "numba>=0.60",
        "numpy>=1.26,<3",
        "pandas>=2.2,<3",
        "pyarrow>=14",
        "pyspark>=4.0.1,<4.3",
    ],
    # Networks; torch below 2.10 has a known hole in torch.load.
    "train": [
        "numba>=0.60",
        "numpy>=1.26,<3",
        "pyarrow>=14",
        "safetensors>=0.4,<1",
        "torch>=2.10,<2.16",
    ],
    # Another feed of networks. Petastorm 0.13.1 reads with pyarrow 11 to 14 and numpy 1 only, and
    # needs pkg_resources at run time; torch 2.13 wants a newer setuptools than has that.
    "petastorm": [
        "numpy>=1.26,<2",
        "petastorm>=0.13.1,<0.14",
        "pyarrow>=14,<15",
        "setuptools<70",
        "torch>=2.10,<2.13",
    ],
    # Search of networks' settings.
    "tune": ["optuna>=4,<6"],
    "report": ["matplotlib>=3.8,<4"],
    "s3": ["s3fs>=2024.2"],
    "azure": ["adlfs>=2024.2"],
    "gcs": ["gcsfs>=2024.2"],
    # What the benchmarks compare with.
    "bench": [
        "duckdb>=1",
        "fastslim==0.3.0",
        "pytorch-lightning<2.5.3",  # with later ones RecTools 0.19 does not start
        "rectools[torch]==0.19.0",
        "scikit-learn>=1.5,<2",
    ],
    "dev": [
        "mypy>=1.10",
        "pytest>=8.2",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.6",
        "scipy>=1.13",
        "types-PyYAML",
    ],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    # `recs` is another project on PyPI.
    name="recs-spark",
    version=VERSION,
    description="Distributed training of recommenders on Spark, Torch and Delta",
    license="Apache-2.0",
    # Databricks' runtimes have 3.12; beyond it Petastorm's pyarrow 14 has no wheels.
    python_requires=">=3.11,<3.13",
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
    packages=[
        *find_packages(include=["recs", "recs.*", "pipelines", "pipelines.*"]),
        "pipelines.conf",
    ],
    # conf/ lies at the top, where people look for it, and is installed beside the command line.
    package_dir={"pipelines.conf": "conf"},
    package_data={"pipelines.conf": ["**/*.yaml"]},
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["recs = pipelines.cli:console"]},
)
