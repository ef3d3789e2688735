# Everything a newcomer types. Each target makes .venv by itself, once; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where pip finds torch, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu; empty: pip's own index.
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help install test test-all lint bench constraints clean reproduce-ntu60 reproduce-ucla report

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(STAMP) ## make .venv with every dependency at its pinned version

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: $(STAMP) ## the fast tests
	$(BIN)/python -m pytest -q -n auto -m "not slow"

test-all: $(STAMP) ## the fast tests and the slow ones
	$(BIN)/python -m pytest -q -n auto

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

constraints: $(STAMP) ## write constraints.txt anew from what .venv holds with all extras
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH) -e '.[flower,sweeps,dev]'
	@{ echo "# Exact versions that hold for every extra together (Python 3.11). Written by: make constraints"; \
	  $(BIN)/pip freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel|skelfed)\b' | sed 's/+.*$$//'; } > constraints.new
	@mv constraints.new constraints.txt && touch $(STAMP)

clean: ## remove what runs have written (outputs/, reports/), not .venv
	rm -rf outputs reports

# --- tables ---------------------------------------------------------------------------------------------------------
# Raw folder given: the published sizes on it. Not given: the embedded miniature at miniature sizes.
# `scale=mini|cpu|published` and any override through ARGS="seed=2 ..." hold for either; `full=true` adds the rest.
full ?= false
ARGS ?=

NTU60_RAW ?=
NTU60 := data=ntu60 $(if $(NTU60_RAW),raw=$(NTU60_RAW))
NTU60_SCALE := scale=$(or $(scale),$(if $(NTU60_RAW),published,mini))
NTU60_TABLE := ntu60/sds_cl_xsub$(if $(filter true,$(full)),$(,)ntu60/sds_cl_xview)
