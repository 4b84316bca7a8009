# make demo | test | attacks | fuzz | bench-check | lint | types | docs | sbom | audit | site | embedded | clean      VENV=… uses another virtual environment, PYTHON=… another interpreter.
VENV ?= .venv
PYTHON ?= python3
WORKERS ?= 2
CASES ?= 20000
OUTPUT ?= runs/demo
SBOM ?= sbom.json
BIN := $(VENV)/bin
STAMP := $(VENV)/.t2eval-installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-full test attacks fuzz bench-check lint types docs sbom audit site embedded clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

# torch goes first and pinned: left to the other packages, pip may choose another one, with several GB of packages for GPUs.
$(STAMP): pyproject.toml constraints.txt t2eval/bridge/t2eval_bridge.py t2eval/bridge/t2eval_bridge.pth
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "constraints.txt is of packages that need Python 3.11 or later. \
	Choose one with PYTHON=python3.11, or install t2eval without constraints.txt."; exit 1; }
	@echo "Setting up $(VENV): 1.8 GB, one to two minutes ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable '.[dev]'
	@touch $@
	@echo "$(VENV) is ready."

setup: $(STAMP) ## make the virtual environment

demo: $(STAMP) ## from nothing to the leaderboard, in minutes (OUTPUT=runs/demo)
	@$(BIN)/t2 demo --output $(OUTPUT)

demo-full: $(STAMP) ## the same, with every expert and baseline trained anew
	@$(BIN)/t2 demo --full --output runs/demo-full

test: $(STAMP) ## all tests, offline (WORKERS=2)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q

attacks: $(STAMP) ## hostile programs against both kinds of jail, each with the verdict that it must get
	@T2EVAL_ATTACKS_ALL=1 $(BIN)/python -m pytest -q tests/sandbox/test_attack_set.py tests/sandbox/test_apart.py

fuzz: $(STAMP) ## damage the files of every reader (CASES=20000)
	@$(BIN)/python -m tests.store.fuzz_readers --cases $(CASES)

bench-check: $(STAMP) ## the benchmarks' ratios on small CPU cases, against benchmarks/baseline.json
	@$(BIN)/python benchmarks/bench_check.py

lint: $(STAMP) ## ruff and the arrows between the rooms
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: $(STAMP) ## mypy --strict
	@$(BIN)/mypy --strict t2eval

docs: $(STAMP) ## the pages that the product writes itself
	@$(BIN)/python -m t2eval.cli.helppage docs

site: $(STAMP) ## the docs as a site, in build/site; a broken link is an error
	@$(BIN)/python -c 'import mkdocs, mkdocstrings' 2>/dev/null || $(PIP) --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

# Tools of the supply chain, in a virtual environment of their own: they must not be among what they list.
$(VENV)-tools/bin/%:
	@test -x $(VENV)-tools/bin/python || $(PYTHON) -m venv $(VENV)-tools
	@$(VENV)-tools/bin/python -m pip install --quiet --disable-pip-version-check "cyclonedx-bom==7.5.0" "pip-audit==2.10.1"

sbom: $(STAMP) $(VENV)-tools/bin/cyclonedx-py ## what is installed, with versions and licences, as CycloneDX (SBOM=sbom.json)
	@$(VENV)-tools/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --output-file $(SBOM)
	@echo "$(SBOM) lists what is in $(VENV)."

audit: $(VENV)-tools/bin/pip-audit ## known vulnerabilities in what constraints.txt pins (asks PyPI)
	@$(VENV)-tools/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

embedded: $(STAMP) ## rebuild the embedded bases, the experts and baselines from the seed (docs say how long it takes)
	@$(BIN)/python -m t2eval.embedded.pretrain --output experts/base
	@$(BIN)/python -m t2eval.embedded.pretrain_vlm --base experts/base --output experts/vlm
	@$(BIN)/python -m t2eval.embedded.pretrain --output experts/base-seed-1 --seed 1
	@$(BIN)/python -m t2eval.bench.shipped

clean: ## remove build outputs and caches (not .venv, not runs)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find t2eval tasks tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
