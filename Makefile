# `make demo` and `make test` need Python 3.11, Java 17 or 21, make and git, and nothing else.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := spark,train,petastorm,tune,report,dev
# The newest of everything, on Python 3.12 where there is one.
NEXT := .venv-next
NEXT_EXTRAS := train,tune,report,dev
# Another interpreter: make PYTHON=/path/to/python3.11 test
PYTHON :=
PYTEST = $(BIN)/python -m pytest
BY_FILE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The build too uses the locked setuptools. pip shows what it fetches: gigabytes, with torch.
define install
$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
$(BIN)/python -m pip install --no-build-isolation --constraint constraints.txt --editable '.[$(1)]'
endef
COMMA := ,

.PHONY: help install java demo demo-slim test test-next test-slow test-cluster check format bench bench-% \
        wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       run all stages on generated events (ARGS=… for the command)"
	@echo "make demo-slim  the same without networks, after an installation without torch"
	@echo "make test       lint, format, types, and all tests but the slow ones"
	@echo "make test-slow  the slow tests; make test-cluster those on a standalone Spark cluster"
	@echo "make test-next  the tests of make test on the newest Spark, pyarrow, numpy and torch"
	@echo "make check      lint, format and types only; make format mends the first two"
	@echo "make bench-X    run benchmarks/X.py (ARGS=data=FOLDER); make bench most of them"
	@echo "make install    create $(VENV) with the locked versions; done by the others when due"
	@echo "make wheel      build dist/*.whl"
	@echo "make clean      remove $(VENV), $(NEXT), caches and builds"

install: $(INSTALLED)

demo: java $(INSTALLED)
	$(BIN)/recs demo $(ARGS)

# For the impatient: torch is most of what is installed.
demo-slim: java $(INSTALLED).slim
	$(BIN)/recs demo models=popularity,slim root=out/demo-slim $(ARGS)

test: java check
test-next: java $(NEXT)/.installed
test-next: BIN := $(NEXT)/bin

# The files of tests are dealt to two processes, each with its session of Spark, in the order of
# tests/conftest.py. Some are run again under the planner of production, which is too slow for all.
test test-next:
	$(PYTEST) $(BY_FILE) -m "not slow and not cluster" $(ARGS)
ifeq ($(ARGS),)
	RECS_TEST_PLANNER=production $(PYTEST) $(BY_FILE) -m "planner and not slow"
endif

test-slow: java $(INSTALLED)
	$(PYTEST) -m slow $(ARGS)

test-cluster: java $(INSTALLED)
	$(PYTEST) -m cluster $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-slim bench-evaluation bench-sequences bench-slim_scale bench-increments bench-scaling \
       bench-training bench-cross_entropy

bench-%: java $(INSTALLED).bench
	$(BIN)/python benchmarks/$*.py $(ARGS)

wheel: $(INSTALLED)
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) $(NEXT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache spark-warehouse

# The first Python 3.11 that really runs (a pyenv shim may exist and not) and can make environments.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3.11 /usr/bin/python3.11 python3); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' \
	      2>/dev/null; then \
	    echo "creating $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "Python 3.11 with venv is missing: install it (Debian: apt-get install python3.11-venv)," \
	  "or say make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# Touched when all is installed: made again only when what to install changes, and an installation
# that broke off is taken up again.
$(INSTALLED): setup.py pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "$(VENV) is not of Python 3.11, or was moved: run make clean" >&2; exit 1; }
	$(call install,$(EXTRAS))
	@touch $@

# What has all has this, too.
$(INSTALLED).slim: setup.py pyproject.toml constraints.txt | $(BIN)/python
	$(if $(wildcard $(INSTALLED)),,$(call install,spark))
	@touch $@

$(INSTALLED).bench: $(INSTALLED)
	$(call install,$(EXTRAS)$(COMMA)bench)
	@touch $@

$(NEXT)/bin/python:
	@for python in $(or $(PYTHON),python3.12 /usr/bin/python3.12 \
	    "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12.*/bin/python \
	    python3.11 /usr/bin/python3.11 python3); do \
	  version=$$("$$python" -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' \
	      2>/dev/null); \
	  case "$$version" in \
	    3.12) echo "creating $(NEXT) with $$("$$python" --version)";; \
	    3.11) echo "creating $(NEXT) with $$("$$python" --version), for there is no Python 3.12";; \
	    *) continue;; \
	  esac; \
	  exec "$$python" -m venv --clear $(NEXT); \
	done; \
	echo "Python 3.12 and 3.11 with venv are missing: install one (Debian: apt-get install" \
	  "python3.11-venv), or say make PYTHON=/path/to/python3.12 test-next" >&2; \
	exit 1

# PySpark and pandas are of the extra spark, whose delta-spark would hold PySpark back.
$(NEXT)/.installed: setup.py pyproject.toml constraints-next.txt | $(NEXT)/bin/python
	$(NEXT)/bin/python -m pip install --quiet --constraint constraints-next.txt setuptools wheel
	$(NEXT)/bin/python -m pip install --no-build-isolation \
	  --constraint constraints-next.txt pyspark pandas --editable '.[$(NEXT_EXTRAS)]'
	$(NEXT)/bin/python -m pip install --quiet --no-deps --constraint constraints-next.txt delta-spark
	@touch $@

java:
	@java="$${JAVA_HOME:+$$JAVA_HOME/bin/}java"; \
	version=$$("$$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1); \
	[ "$${version:-0}" -ge 17 ] && [ "$${version:-0}" -lt 23 ] || { \
	  echo "Java 17 or 21 is missing ($$java: version $${version:-not found}):" \
	    "install it (Debian: apt-get install openjdk-17-jre-headless), and set JAVA_HOME" >&2; \
	  exit 1; }
