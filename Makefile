# Everything a person does with a checkout. `make run` and `make test` set up what is missing first.

VENV := .venv
SHELL := /bin/bash
ARGS ?=
# The lab makes network devices and Debian roots; Python leaves no files of root's in the checkout.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E) env PYTHONDONTWRITEBYTECODE=1

.DEFAULT_GOAL := help
.PHONY: help setup run image test test-operations test-swarm lab lab-down lint types bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: nginx, PostgreSQL, pebble, the virtual environment
	@.ci/setup

run: setup ## a cluster on this machine; Ctrl-C stops it (ARGS="--nodes 5 --base 127.78.0")
	@$(VENV)/bin/lyttle-ops local up $(ARGS)

image: ## the Docker image lyttle-ops:<version> (ARGS="--no-cache")
	@.ci/image $(ARGS)

test: ## unit, integration and cluster tests, on real parts (ARGS="tests/unit -k render")
	@.ci/setup tests
	@$(VENV)/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-operations: ## tests of the operator's commands, `lyttle-ops local`, import, restore, key change, held ports, the shared copy, the load generator
	@.ci/setup tests
	@$(VENV)/bin/pytest tests/operations -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-swarm: ## the tests on a real Swarm: a quick one, and three Debian hosts; from a bare machine, needs root or sudo
	@.ci/setup lab
	@$(ROOT) $(VENV)/bin/pytest tests/swarm --timeout=3600 $(ARGS)

lab: ## three fresh Debian hosts and their inventory; needs root or sudo (ARGS="--name mine --fresh")
	@.ci/setup lab
	@$(ROOT) $(VENV)/bin/python -m tests.lab up $(ARGS)

lab-down: ## remove them (ARGS="--name mine")
	@$(ROOT) $(VENV)/bin/python -m tests.lab down $(ARGS)

lint: setup ## ruff, yamllint, ansible-lint (production profile)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/yamllint --strict playbooks roles .ansible-lint
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/ansible-lint --offline -q playbooks roles

types: setup ## mypy, strict
	@$(VENV)/bin/mypy

bench: setup ## every benchmark, one after the other
	@set -e; export PYTHONPATH=.; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(VENV)/bin/python "$$file"; done

clean: ## remove the virtual environment and what tools left behind
	@! compgen -G 'build/lab/*/lab.json' >/dev/null || { echo "a lab is there: make lab-down first" >&2; exit 1; }
	@$(if $(wildcard build/lab),$(ROOT)) rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
