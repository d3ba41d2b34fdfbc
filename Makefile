# Every target makes the virtual environment it needs by itself; `make` alone lists them.
#
#   .venv       everything a developer needs, or only the demo's part while that is all anyone asked for
#   .venv-core  the base install and pytest: the core's tests, with no adapter's dependencies at hand

PYTHON ?= python3
VENV := .venv
CORE_VENV := .venv-core
ARGS ?=
WORKERS ?= 2

# torch goes in first and alone, as exactly this version: a resolver that sees it among others may
# choose a build with gigabytes of CUDA libraries where a local index offers one without.
TORCH := $(shell grep '^torch==' constraints.txt)
INSTALL := -m pip install --quiet --constraint constraints.txt
# Development mode as a variable, since that is what the test processes inherit.
PYTEST := -m pytest -n $(WORKERS) --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The models of the demo and the tests are tiny: more threads only wait for each other.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-core lint format docs bench breakages soak clean

help: ## list the targets
	@echo 'Usage: make TARGET [ARGS="..."]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

demo: $(VENV)/.demo ## train a small policy with GRPO and watch it (ARGS="--headless --seed 1")
	$(VENV)/bin/aegir demo $(ARGS)

test: $(if $(ARGS),,test-core) $(VENV)/.dev ## run all tests (ARGS="-k cursor": some of them; WORKERS=2)
	PYTHONDEVMODE=1 $(VENV)/bin/python $(PYTEST) $(or $(ARGS),--ignore=tests/core)

test-core: $(CORE_VENV)/.test ## run the core's tests, with no extras installed
	PYTHONDEVMODE=1 $(CORE_VENV)/bin/python $(PYTEST) tests/core tests/test_imports.py

lint: $(VENV)/.dev ## check style, types, import directions and spelling
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell

format: $(VENV)/.dev ## format the code and mend what ruff can
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

docs: $(VENV)/.dev ## build the documentation into docs/_build
	$(VENV)/bin/sphinx-build -n -W --keep-going --quiet docs docs/_build
	@echo 'open docs/_build/index.html'

bench: $(VENV)/.dev ## run the benchmarks and compare them with their budgets
	@set -e; for question in benchmarks/bench_*.py; do \
	  echo "== $$question"; $(VENV)/bin/python "$$question" $(ARGS); done

breakages: $(VENV)/.dev ## break the lines that tests must guard, one at a time, and see a test notice
	$(VENV)/bin/python tests/break_lines.py

soak: $(VENV)/.dev ## try the log for minutes (ARGS="--minutes 3 --seed 7 --no-large")
	cd tests && ../$(VENV)/bin/python -m soak $(ARGS)

clean: ## remove what was built (for the environments: rm -r .venv .venv-core)
	rm -rf build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f .coverage .coverage.*
	find aegir_stream adapters tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# -- environments: a stamp says what was installed, and is older than what it was installed from --

define make-environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Choose another: make PYTHON=python3.12")'
@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef

$(VENV)/.torch: constraints.txt
	$(call make-environment,$(VENV))
	@echo 'Installing $(TORCH) into $(VENV) (once; a minute or two)'
	@$(VENV)/bin/python -m pip install --quiet $(TORCH)
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.torch
	@echo 'Installing aegir-stream[demo,ui] into $(VENV) (once; a minute or two)'
	@$(VENV)/bin/python $(INSTALL) --editable '.[demo,ui]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	@echo 'Installing aegir-stream[dev] into $(VENV) (once; a minute or two)'
	@$(VENV)/bin/python $(INSTALL) --editable '.[dev]'
	@touch $(VENV)/.demo $@

$(CORE_VENV)/.test: pyproject.toml constraints.txt
	$(call make-environment,$(CORE_VENV))
	@echo 'Installing aegir-stream[test] into $(CORE_VENV)'
	@$(CORE_VENV)/bin/python $(INSTALL) --editable '.[test]'
	@touch $@
