# Everything a person does with a checkout. `make run` and `make test` set up what is missing first.

VENV := .venv
SHELL := /bin/bash
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test lint types bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: nginx, PostgreSQL, pebble, the virtual environment
	@.ci/setup

run: setup ## a cluster on this machine; Ctrl-C stops it (ARGS="--nodes 5 --base 127.78.0")
	@$(VENV)/bin/lyttle-ops local up $(ARGS)

test: ## all tests, on real parts (ARGS="tests/unit -k render")
	@.ci/setup tests
	@$(VENV)/bin/pytest -n 2 --dist loadfile $(ARGS)

lint: setup ## ruff: rules and format
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

types: setup ## mypy, strict
	@$(VENV)/bin/mypy

bench: setup ## every benchmark, one after the other
	@set -e; export PYTHONPATH=.; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(VENV)/bin/python "$$file"; done

clean: ## remove the virtual environment and what tools left behind
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
