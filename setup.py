"""Package metadata: honest ranges here, the exact tried versions in constraints.txt."""

from setuptools import find_packages, setup
setup(name="recs", version="0.1.0", packages=find_packages(include=["recs", "recs.*", "pipelines", "pipelines.*"]))
