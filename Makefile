# Buoy's commands. `make` alone prints this list.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
STATE ?=
SERVICE ?=

.PHONY: help setup demo test up restart down purge install uninstall bench lint format protos check-protos constraints

help: ## print this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

setup: ## install what the project needs: OS packages (as root) and .venv
	@deploy/setup

demo: setup ## run a container, restart and kill the daemons under it, and see that nothing of it changed
	@$(PY) -m launcher.demo

test: ## the tests that CI runs
	@deploy/setup --tests
	@$(PY) -m pytest tests

up: setup ## start the engine without systemd: make up STATE=/tmp/b
	@$(PY) -m launcher up --state "$(call need,STATE)"

restart: ## restart one service in place: make restart STATE=/tmp/b SERVICE=dockerd-api
	@$(PY) -m launcher restart --state "$(call need,STATE)" --service "$(call need,SERVICE)"

down: ## stop the services; containers run on
	@$(PY) -m launcher down --state "$(call need,STATE)"

purge: ## stop the services and remove containers, mounts, networks and the state folder
	@$(PY) -m launcher purge --state "$(call need,STATE)"

install: ## install as systemd services, below /opt/buoy; upgrades in place and keeps containers
	@deploy/install

uninstall: ## stop and remove the services; PURGE=1 also removes containers and data
	@deploy/uninstall

bench: setup ## measured ratios against the engine at PEER_DOCKER_HOST
	@$(PY) -m tests.bench

lint: ## ruff, mypy --strict, the import arrows
	@.venv/bin/ruff format --check --quiet . && .venv/bin/ruff check --quiet . && .venv/bin/mypy && $(PY) -m pytest -q tests/unit/test_arrows.py

format: ## let ruff format the tree
	@.venv/bin/ruff format --quiet . && .venv/bin/ruff check --quiet --fix .

protos: ## generate services/pb from proto/
	@$(PY) proto/generate.py

check-protos: ## fail when services/pb differs from what proto/ says
	@$(PY) proto/generate.py --check

constraints: ## write the versions that .venv has into constraints.txt
	@$(PY) -m pip freeze --all --exclude-editable --disable-pip-version-check > constraints.txt

need = $(if $($(1)),$($(1)),$(error name a value: make $@ $(1)=…))
