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
.PHONY: help install test test-all lint bench constraints clean report dashboards reproduce-ntu60 reproduce-ntu120 \
  reproduce-pku reproduce-kinetics reproduce-ucla reproduce-fedmllm

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(STAMP) ## make .venv with every dependency at its pinned version

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once, a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python 3.11 or newer, found " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
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

bench: $(STAMP) ## measure ours beside plain implementations, then the table of docs/performance.md [ONLY=row,row small=true]
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(filter true,$(small)),--small)

constraints: $(STAMP) ## write constraints.txt anew from what .venv holds with all extras
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH) -e '.[flower,sweeps,dashboards,dev]'
	@{ echo "# Exact versions that hold for every extra together (Python 3.11). Written by: make constraints"; \
	  $(BIN)/pip freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel|skelfed)\b' | sed 's/+.*$$//'; } > constraints.new
	@mv constraints.new constraints.txt && touch $(STAMP)

report: $(STAMP) ## write reports/*.html and *.md again from the records [NAME=ntu60]
	$(BIN)/python report.py name=$(or $(NAME),ntu60)

dashboards: $(STAMP) ## create or update the W&B workspaces of conf/dashboards.yaml [ENTITY=team PROJECT=skelfed]
	$(BIN)/python -m tracking.dashboards '$(ENTITY)' '$(PROJECT)'

clean: ## remove what runs have written (outputs/, reports/), not .venv
	rm -rf outputs reports

# --- tables ---------------------------------------------------------------------------------------------------------
# With a raw folder: published sizes on it. Without: the embedded miniature at miniature sizes.
# scale=published|cpu|mini overrides the size, full=true adds the other splits and label fractions, METHOD=scd_net takes
# another method than SDS-CL where a target has one, ARGS="seed=2 trainer.accelerator=gpu" goes to every run.
comma := ,
space := $(subst ,, )
full ?= false
METHOD ?= sds_cl
ARGS ?=
sizes = scale=$(or $(scale),$(if $(1),published,mini)) $(if $(1),raw='$(1)')
list = $(subst $(space),$(comma),$(strip $(1)))
# $(1) data set, $(2) splits, $(3) methods -> ntu60/sds_cl_xsub,...
presets = $(call list,$(foreach split,$(2),$(foreach method,$(3),$(1)/$(method)_$(split))))
both = $(1)$(if $(filter true,$(full)),$(comma)$(2))
FRACTIONS := $(if $(filter true,$(full)),0.01$(comma)0.05$(comma)0.1$(comma)0.2$(comma)0.4,0.1)

prepare = $(BIN)/python prepare.py data=$(1) $(if $(2),raw='$(2)')
read_corpus = $(BIN)/python prepare.py corpus=$(1) $(if $(2),raw='$(2)')

# $(1) data set, $(2) raw folder, $(3) experiments, $(4) shares of the labels
define chain
$(BIN)/python train.py -m experiment=$(3) $(call sizes,$(2)) $(ARGS)
$(BIN)/python eval.py -m experiment=$(3) protocol=knn,linear,inspect,supervised $(call sizes,$(2)) $(ARGS)
$(BIN)/python eval.py -m experiment=$(3) protocol=semi protocol.fraction=$(4) $(call sizes,$(2)) $(ARGS)
endef

# The same arguments: methods that learn from labels in one stage, whose rows are the shares themselves.
define one_stage
$(BIN)/python train.py -m experiment=$(3) labelled.fraction=$(4) $(call sizes,$(2)) $(ARGS)
$(BIN)/python eval.py -m experiment=$(3) protocol=knn,linear $(call sizes,$(2)) $(ARGS)
endef

# $(1), $(2), $(3) as above, $(4) experiments of which three streams are fused, $(5) set to transfer to, $(6) its raw folder
define beyond
$(BIN)/python eval.py -m experiment=$(3) protocol=finetune $(call sizes,$(2)) $(ARGS)
$(BIN)/python train.py -m experiment=$(4) stream=motion,bone $(call sizes,$(2)) $(ARGS)
$(BIN)/python eval.py -m experiment=$(4) protocol=knn,linear fuse=three_streams $(call sizes,$(2)) $(ARGS)
$(call prepare,$(5),$(6))
$(BIN)/python eval.py -m experiment=$(3) protocol=linear,finetune data@target=$(5) $(if $(6),target.raw='$(6)') $(call sizes,$(2)) $(ARGS)
endef

report = $(BIN)/python report.py name=$(1)

# $(1), $(2) as above, $(3) experiments of METHOD
define table
$(call prepare,$(1),$(2))
$(if $(filter psp psp_ce,$(METHOD)),$(call one_stage,$(1),$(2),$(3),$(FRACTIONS)$(comma)1.0),$(call chain,$(1),$(2),$(3),$(FRACTIONS)))
$(call report,$(1))
endef

NTU60_SPLITS := xsub $(if $(filter true,$(full)),xview)
NTU60_STREAMS := scd_net a2mc $(if $(filter true,$(full)),a2mc_released)
NTU60 := $(call presets,ntu60,$(NTU60_SPLITS),sds_cl $(NTU60_STREAMS))
# Splits of fine-tuning, streams and transfer, which are most of the full table's time.
BEYOND ?= $(NTU60_SPLITS)

reproduce-ntu60: $(STAMP) ## NTU RGB+D 60: prepare, train, evaluate, report [NTU60_RAW=folder PKU2_RAW=folder full=true ...]
	$(if $(and $(filter true,$(full)),$(NTU60_RAW)),$(if $(PKU2_RAW),,@echo "full=true transfers to PKU-MMD II: expected PKU2_RAW=folder beside NTU60_RAW, found none" >&2; exit 2))
	$(call prepare,ntu60,$(NTU60_RAW))
	$(call chain,ntu60,$(NTU60_RAW),$(NTU60),$(FRACTIONS))
	$(call one_stage,ntu60,$(NTU60_RAW),$(call presets,ntu60,$(NTU60_SPLITS),psp psp_ce),$(FRACTIONS)$(comma)1.0)
	$(BIN)/python eval.py -m experiment=$(call presets,ntu60,$(NTU60_SPLITS),psp) labelled.fraction=1.0 protocol=inspect 'protocol.rows=[trained]' $(call sizes,$(NTU60_RAW)) $(ARGS)
	$(if $(filter true,$(full)),$(call beyond,ntu60,$(NTU60_RAW),$(call presets,ntu60,$(BEYOND),sds_cl $(NTU60_STREAMS)),$(call presets,ntu60,$(BEYOND),$(NTU60_STREAMS)),pku2,$(PKU2_RAW)))
	$(call report,ntu60)
	$(if $(filter true,$(full)),$(call report,pku2))

reproduce-ntu120: $(STAMP) ## NTU RGB+D 120: the same chain [NTU120_RAW=folder full=true scale=...]
	$(call table,ntu120,$(NTU120_RAW),$(call both,ntu120/$(METHOD)_xsub,ntu120/$(METHOD)_xset))

reproduce-pku: $(STAMP) ## PKU-MMD, phases 1 and 2: the same chain of each [PKU1_RAW=folder PKU2_RAW=folder ...]
	$(call table,pku1,$(PKU1_RAW),$(call both,pku1/$(METHOD)_xsub,pku1/$(METHOD)_xview))
	$(call table,pku2,$(PKU2_RAW),$(call both,pku2/$(METHOD)_xsub,pku2/$(METHOD)_xview))

reproduce-kinetics: $(STAMP) ## Skeleton-Kinetics: the same chain, METHOD=sds_cl|psp|psp_ce [KINETICS_RAW=folder scale=...]
	$(call table,kinetics,$(KINETICS_RAW),kinetics/$(METHOD))

UCLA_PRETRAINED := ucla/sds_cl,ucla/scd_net,ucla/a2mc$(if $(filter true,$(full)),$(comma)ucla/a2mc_released$(comma)ucla/skeleton_clr$(comma)ucla/aim_clr)
# All four shares of the field on real data; on the miniature the first and the last.
UCLA_FRACTIONS := $(if $(or $(UCLA_RAW),$(filter true,$(full))),0.05$(comma)0.15$(comma)0.3$(comma)0.4,0.05$(comma)0.4)

reproduce-ucla: $(STAMP) ## NW-UCLA: every method, at 5, 15, 30 and 40 labelled clips a class [UCLA_RAW=folder full=true scale=cpu]
	$(call prepare,ucla,$(UCLA_RAW))
	$(BIN)/python train.py -m experiment=$(UCLA_PRETRAINED) $(call sizes,$(UCLA_RAW)) $(ARGS)
	$(BIN)/python train.py -m experiment=ucla/psp,ucla/psp_ce labelled.fraction=$(UCLA_FRACTIONS) $(call sizes,$(UCLA_RAW)) $(ARGS)
	$(BIN)/python eval.py -m experiment=$(UCLA_PRETRAINED) protocol=knn,linear,inspect,supervised $(call sizes,$(UCLA_RAW)) $(ARGS)
	$(BIN)/python eval.py -m experiment=ucla/sds_cl protocol=semi protocol.fraction=$(UCLA_FRACTIONS) $(call sizes,$(UCLA_RAW)) $(ARGS)
	$(BIN)/python report.py name=ucla

# FedMLLM's table on Hateful Memes: two processes, on the miniature side by side (whichever is first makes the tiny base,
# the other waits for it), on real data one after the other.
more = $(if $(filter true,$(full)),$(1)) $(2)
FEDMLLM_HALVES := \
  $(call list,$(call more,alpha_5 alpha_1,alpha_05) $(call more,cross_3_7 cross_7_3,cross_5_5)) \
  $(call list,$(call more,missing_30 missing_40,missing_50) $(call more,hybrid_80 hybrid_70,hybrid_60))
FEDMLLM_ROWS := zero_shot,local,centralised,fedavg,fedavgm,fedadam,fedyogi,prompt,adaptive$(if $(filter true,$(full)),$(comma)fedadagrad$(comma)fedprox$(comma)one_shot)

reproduce-fedmllm: $(STAMP) ## FedMLLM on Hateful Memes: read the set, nine rows, twelve with full=true, on four settings or twelve, report [HATEFUL_MEMES_RAW=folder full=true scale=...]
	$(call read_corpus,hateful_memes,$(HATEFUL_MEMES_RAW))
	$(if $(HATEFUL_MEMES_RAW),,OMP_NUM_THREADS=1 )$(MAKE) --no-print-directory -j$(if $(HATEFUL_MEMES_RAW),1,2) $(addprefix fedmllm-,$(FEDMLLM_HALVES))
	$(BIN)/python report.py name=fedmllm_hateful_memes

fedmllm-%: $(STAMP)
	$(BIN)/python federate.py -m experiment=$(call list,$(addprefix fedmllm/hateful_memes_,$(subst $(comma), ,$*))) row=$(FEDMLLM_ROWS) $(call sizes,$(HATEFUL_MEMES_RAW)) $(ARGS)
