# Everything starts from an environment of its own, .venv: `make` builds it on first use.
# Needs git, make and Python >= 3.11; choose one with `make test PYTHON=python3.12`.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    && echo $$python && break; done)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
STAMP := .venv/.complete-$(VERSION)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST ?= -n auto --maxprocesses 8

.PHONY: help demo test slow fuzz docs lint types format requirements clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*##/\1 /p' Makefile | awk '{name = $$1; $$1 = ""; printf "  make %-13s%s\n", name, $$0}'

demo: $(STAMP)  ## Run the main job on real digits: minutes on two cores
	$(BIN)/python -m experiments.plasticity quick

test: $(STAMP)  ## Run the tests; PYTEST="-x tests/test_tree.py" to choose
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

# With programs compiled as users compile them; the other tests save the time for that.
slow: $(STAMP)  ## Run the slow tests: kills, campaigns, many processes
	XLA_FLAGS=--xla_cpu_parallel_codegen_split_count=1 \
	    $(BIN)/python -m pytest -m slow $(PYTEST)

fuzz: $(STAMP)  ## Damage files, models, checkpoints and command lines, 5,000 inputs of each kind
	for battery in rows texts images models gguf_files checkpoints commands; do \
	    JAX_PLATFORMS=cpu $(BIN)/python -m tests.fuzz.$$battery --count $(or $(COUNT),5000) \
	    || exit 1; done

docs: $(STAMP)  ## Build the reference in build/docs/index.html
	$(BIN)/python -m sphinx --quiet --fail-on-warning --fresh-env docs build/docs

lint: $(STAMP)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## Check types without running anything
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## Format and tidy the code in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

requirements: $(STAMP)  ## Pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile pyproject.toml --upgrade --universal --python-version 3.11 \
	    --extra data --extra cluster --extra docs --extra gguf --extra report --extra test \
	    --extra text --group install \
	    --generate-hashes --no-header --no-annotate --quiet -o requirements-dev.txt

clean:  ## Remove the environment and all caches; runs in outputs/ stay
	rm -rf .venv .cache .pytest_cache .ruff_cache build docs/api *.egg-info
	find jaxcl experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip fetches uv, which installs the rest ten times as fast; where uv finds no package
# index, pip does it after all, by its own settings. Bytecode is written once and for all, as
# pip does: without it each Python that loads JAX takes 8 CPU seconds more, where
# PYTHONDONTWRITEBYTECODE is set.
$(STAMP): requirements-dev.txt pyproject.toml
	@test -n "$(VERSION)" || { echo "No Python >= 3.11 here: name one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv --clear .venv
	awk '/^uv==/, !/\\$$/' requirements-dev.txt > .venv/uv.txt
	$(PIP) --require-hashes --requirement .venv/uv.txt
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode \
	    --python $(BIN)/python requirements-dev.txt \
	    || $(PIP) --require-hashes --requirement requirements-dev.txt
	$(BIN)/uv pip install --quiet --offline --no-deps --no-build-isolation \
	    --python $(BIN)/python --editable .
	@touch $@
