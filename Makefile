# `make` alone lists the targets. Everything runs unattended and needs no network but PyPI and Debian's packages.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check test-crash test-openzfs bench format clean venv packages

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test processes at once; the tests of one file stay together, so that they share a server, and the files in
# the order of tests/conftest.py.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# One more where they mostly wait for disks, servers and time limits.
WAITING := -n 3 --dist loadfile --no-loadscope-reorder
# What runs that machine, and what builds it.
MACHINE := qemu-system-x86 mmdebstrap e2fsprogs cpio zstd kmod gcc make libc6-dev libelf1
# All combinations, instead of some that stand for the others: make test-openzfs FULL=1
FULL ?=
# Where make bench keeps what is synced: in folders, or on a ZFS of the tests (zfs-fuse, openzfs)
BACKEND ?=
# Extra words for pytest and for the benchmark: make test ARGS='-k recovery', make bench ARGS='--pairs 9 --delay 20'
ARGS ?=

help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
		while IFS=$$'\t' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: packages venv ## Two people sync a real data set through a server on this machine, into ./demo/
	@$(BIN)/python -m tests.demo $(ARGS)

test: packages venv ## Every test, with a real OpenSSH server (up to 25 minutes)
	@$(BIN)/python -m pytest $(WAITING) --durations 20 $(ARGS)

check: venv ## Format, lint, types, import contracts and the fast tests (under 2 minutes)
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted: run 'make format'."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --strict --no-error-summary
	@$(BIN)/lint-imports > $(VENV)/contracts.log 2>&1 || { cat $(VENV)/contracts.log; exit 1; }
	@$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(ARGS)

test-crash: packages venv ## The whole fault lane: every step, fault and next command
	@DSG_FULL=1 $(BIN)/python -m pytest -n 2 --dist load tests/crash $(ARGS)

test-openzfs: packages venv ## The ZFS backend on a kernel's OpenZFS, in a virtual machine (FULL=1: all of it)
	@.ci/packages $(MACHINE)
	@$(BIN)/python -m tests.hosts.openzfs
	@DSG_FULL=$(FULL) $(BIN)/python -m pytest $(PARALLEL) -o timeout=1200 tests/openzfs $(ARGS)

bench: packages venv ## dsg beside rsync over one sshd: times, bytes, memory (BACKEND=zfs-fuse or openzfs: on ZFS)
	@$(if $(filter openzfs,$(BACKEND)),.ci/packages $(MACHINE))
	@$(BIN)/python -m tests.bench $(if $(BACKEND),--backend $(BACKEND)) $(ARGS)

format: venv ## Put every file into the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Remove what the other targets made
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv: $(VENV)/.made ## Make or refresh .venv, where all of the above run

# Made anew when pyproject.toml is newer, and when the folder was moved: what is installed holds absolute paths.
# editable_mode=compat: setuptools' usual import hook costs every start of Python here 20 ms, which the tests of
# start-up times and the benchmark would measure.
$(VENV)/.made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "DSG needs Python 3.11 or newer; choose one with: make PYTHON=/path/to/python3"; exit 1; }
	@if [ "$$(cat $@ 2> /dev/null)" != "$(CURDIR)" ]; then \
		.ci/packages python3-venv; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); fi
	@echo "installing DSG and its tools into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		--config-settings editable_mode=compat -e '.[dev]'
	@echo "$(CURDIR)" > $@

ifneq ($(shell cat $(VENV)/.made 2> /dev/null),$(CURDIR))
.PHONY: $(VENV)/.made
endif

packages: # Debian packages that the tests, the demo and the benchmark use
	@.ci/packages openssh-server openssh-client rsync strace git zfs-fuse sudo xfsprogs zsh fish tcsh
