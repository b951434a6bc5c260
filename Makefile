# `make reproduce` and `make test` do all their own set-up in .venv; only Python 3.11 or newer and make are needed.
SHELL  := /bin/bash
PYTHON ?= python3
JOBS   ?= 2
DEVICE ?= cpu
VENV   := .venv
READY  := $(VENV)/.ready
NOTEBOOKS ?= $(sort $(filter-out nbs/train/% nbs/speed/%,$(wildcard nbs/*.ipynb nbs/*/*.ipynb)))

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup reproduce test test-cuda test-slurm bench bench-peers readme schema notebooks export clean-notebooks hooks clean
.DEFAULT_GOAL := help

help:
	@echo 'make reproduce        the grid on synthetic data, its table and its figure (results/reproduce)'
	@echo 'make test             every check and every notebook'
	@echo 'make test-cuda        the checks that need a GPU'
	@echo 'make test-slurm       a grid on a Slurm cluster of one node, set up here as root from Debian packages'
	@echo 'make bench            speed on this machine; DEVICE=cuda on a GPU; FRACTION=0.75: prepare on 6 GB (results/bench)'
	@echo 'make bench-peers      a training step beside that of MMSA 2.2.1, which gets an environment of its own'
	@echo 'make readme           README.md from nbs/index.ipynb'
	@echo 'make schema           what a grid file may hold, for editors (workflow/config/grid.schema.json)'
	@echo 'make notebooks        execute and clean all notebooks but training and bench, in place'
	@echo 'make export           notebooks to msmix/*.py'
	@echo 'make clean-notebooks  strip the notebooks of what changes from one execution to the next'
	@echo 'make hooks            git hooks that keep notebooks clean and mergeable'
	@echo 'make clean            remove .venv, caches and results/reproduce'

setup: $(READY)

# The stamp is written last, so an interrupted install is taken up again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"msmix: Python 3.11 or newer is needed, found {v[0]}.{v[1]} at {sys.executable}: call make PYTHON=/path/to/python3.11")'
	@echo 'Installing into $(VENV); this takes a few minutes once.'
	@$(PYTHON) -m venv $(VENV)
	@python -m pip install --constraint constraints.txt --editable '.[workflow,text,tables,dev]' > $(VENV)/install.log 2>&1 \
	  || { tail -n 20 $(VENV)/install.log; echo 'msmix: the install failed, see $(VENV)/install.log'; exit 1; }
	@touch $@

reproduce: $(READY)
	@msmix grid workflow/config/reproduce.yaml -j $(JOBS)

test: export HF_HUB_OFFLINE := 1
test: export OMP_NUM_THREADS := 1
test: $(READY)
	@python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

# Cells that need a GPU are left out everywhere else.
GPU_PAGES := $(shell grep -lE '^ *"\#\| cuda' nbs/*.ipynb nbs/*/*.ipynb)
test-cuda: export HF_HUB_OFFLINE := 1
test-cuda: $(READY)
	@python -c 'import sys; from pathlib import Path; from nbdev.test import test_nb; \
	  sys.exit(not all([test_nb(Path(o), skip_flags=["slow","data"], basepath=Path.cwd())[0] for o in sys.argv[1:]]))' $(GPU_PAGES)

# The executor for Slurm comes on top of what the other targets need.
test-slurm: export HF_HUB_OFFLINE := 1
test-slurm: $(READY)
	@python -m pip install --quiet --constraint constraints.txt --editable '.[workflow,slurm]'
	@python -m pytest tests/test_slurm.py -m slurm $(ARGS)

# Each page measures and keeps what it finds; the machine should have nothing else to do.
BENCH := msmix notebook
MEASURE = -p measure=true -p device=$(DEVICE) -p folder=$(CURDIR)/results/bench
KEEP = -p device=$(DEVICE) -p out=$(CURDIR)/results/bench
GPU_RUNS := [1,2,4,8,16]
CPU_RUNS := [1,2,4]
FRACTION ?= 0.2
CAPTURE := false $(if $(filter cuda%,$(DEVICE)),true)

# On a GPU every run of the paper's grid is timed, with BERT-base where it is fine-tuned; a CPU would need hours for that.
ON_GPU := $(filter cuda%,$(DEVICE))
PAPER  := -p 'backbones=["tfn","lmf","mult","misa","almt","glomo"]' -p 'mixers=["none","manifold","multimix","advmixup","powmix","msmix"]'
ALL    := -p 'datasets=["mosi","mosei","sims"]' -p 'together=["tfn","lmf","mult","misa","almt","glomo"]' -p batches=20 -p bert=true -p data=synth:mosi
GRID   := $(PAPER) $(if $(ON_GPU),$(ALL),-p data=synth:mosi:0.1)

# A page that could not measure all it was asked for does not keep the next from its turn; the target fails in the end.
bench: $(READY)
	@trap 'exit 130' INT; bad=0; \
	for o in $(CAPTURE); do $(BENCH) nbs/speed/step.ipynb results/bench/notebooks/$(DEVICE)-step-capture-$$o.ipynb $(MEASURE) -p capture=$$o || bad=1; done; \
	for o in $(CAPTURE); do $(BENCH) nbs/speed/step.ipynb results/bench/notebooks/$(DEVICE)-step-bert-capture-$$o.ipynb $(MEASURE) -p bert=true -p capture=$$o \
	  $(if $(ON_GPU),,-p 'likes=["mosi"]') || bad=1; done; \
	$(BENCH) nbs/speed/levers.ipynb results/bench/notebooks/$(DEVICE)-levers.ipynb $(MEASURE) || bad=1; \
	$(BENCH) nbs/speed/data.ipynb results/bench/notebooks/$(DEVICE)-data.ipynb $(KEEP) -p fraction=$(FRACTION) || bad=1; \
	for o in $(CAPTURE); do $(BENCH) nbs/speed/runs.ipynb results/bench/notebooks/$(DEVICE)-runs-capture-$$o.ipynb $(KEEP) -p capture=$$o $(GRID) \
	  -p epochs=10 -p repeats=$(if $(ON_GPU),2,3) -p 'at_once=$(if $(ON_GPU),$(GPU_RUNS),$(CPU_RUNS))' || bad=1; done; \
	exit $$bad

# MMSA's packages stay out of the project's environment; torch is the same in both.
PEERS := .venv-mmsa
bench-peers: $(READY) $(PEERS)/.ready
	@trap 'exit 130' INT; for o in $(CAPTURE); do $(BENCH) nbs/speed/peers.ipynb results/bench/notebooks/$(DEVICE)-peers-capture-$$o.ipynb $(MEASURE) -p capture=$$o \
	  -p python=$(CURDIR)/$(PEERS)/bin/python -p script=$(CURDIR)/nbs/speed/mmsa_steps.py || bad=1; done; exit $${bad:-0}

$(PEERS)/.ready: constraints.txt
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt torch MMSA==2.2.1
	@touch $@

readme: $(READY)
	@python -c 'from msmix.docs import write_readme; print(write_readme())'

schema: $(READY)
	@python -c 'import json; from msmix.grid.config import grid_schema; print(json.dumps(grid_schema(), indent=1))' > workflow/config/grid.schema.json

notebooks: $(READY)
	@python -c 'import sys; from msmix.docs import execute_in_place as run; [print(run(o), flush=True) for o in sys.argv[1:]]' $(NOTEBOOKS)
	@for o in $(NOTEBOOKS); do nbdev_clean --fname $$o; done

export: $(READY)
	@nbdev_export

clean-notebooks: $(READY)
	@nbdev_clean

hooks: $(READY)
	@nbdev_install_hooks

clean:
	rm -rf $(VENV) $(PEERS) results/reproduce .snakemake .pytest_cache .ruff_cache build dist *.egg-info
