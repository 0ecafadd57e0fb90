# Everything runs in .venv, built on first use with the versions of constraints.txt.

VENV := .venv
PY := $(VENV)/bin/python
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed

PYTHON ?= # the interpreter to build .venv with; the first suitable one when empty
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.14 python
WORKERS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
ARGS ?= # more words for the command behind a target: make train ARGS="attention=mla trainer.max_steps=500"

.DEFAULT_GOAL := help
.PHONY: help train check test lint format docs hooks wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(CORE) ## train with the default settings and print samples; ARGS="attention=mla" changes them
	$(VENV)/bin/mgpt-train $(ARGS)

check: $(DEV) ## ruff and the quick, telling tests, in under a minute
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -q --quick -n $(WORKERS) --maxprocesses=8 --dist=worksteal $(ARGS)

test: $(DEV) ## lint, and the whole test suite; ARGS="-k mla" selects
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy & types=$$!; \
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --maxprocesses=8 --dist=worksteal $(ARGS); \
	tests=$$?; wait $$types && exit $$tests # mypy needs one core, and so runs beside the tests

lint: $(DEV) ## ruff and mypy, changing nothing
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: $(DEV) ## let ruff rewrite the code as lint wants it
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

docs: $(DEV) ## write the tables and outputs in the pages anew, from the code
	$(PY) docs/scripts/tables.py
	$(PY) -m tests.docs.pages docs/*.md README.md

hooks: $(DEV) ## run lint before every git commit
	$(PY) -m pre_commit install

wheel: $(DEV) ## build the source archive and the wheel into dist/
	$(PY) -m build --no-isolation

clean: ## remove .venv, dist and caches; runs/ stays
	rm -rf $(VENV) dist build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CORE): pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEV): $(CORE)
	$(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Debian's Python has no ensurepip without a package of its own: the pip it does have can still fill .venv.
$(PY):
	@found=; for candidate in $(or $(strip $(PYTHON)),$(CANDIDATES)); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        found=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: none of $(or $(strip $(PYTHON)),$(CANDIDATES)) is Python 3.11 or newer;" \
	        "install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	fi; \
	if "$$found" -c 'import ensurepip' 2>/dev/null; then \
	    "$$found" -m venv --clear $(VENV); \
	else \
	    "$$found" -m venv --clear --without-pip $(VENV) && \
	    "$$found" -m pip --python $(PY) install --quiet pip; \
	fi || { \
	    rm -rf $(VENV); \
	    echo "make: $$found cannot build $(VENV) (its message stands above); on Debian and Ubuntu install" \
	        "python3-venv, elsewhere name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	}
