# InstructGPT's recipe, a target a stage. The first target that runs anything sets up .venv by itself.
#   make demo                                   everything, on the embedded model; ends with a report
#   make test                                   the tests
#   make ppo CONFIG=configs/mine.yaml GPUS=8 ARGS="--ppo.kl_coef 0.05"
#   make ppo CONFIG=configs/mine.yaml GPUS=8 ACCELERATE=configs/accelerate/fsdp2.yaml
#   make label RUN=runs/mine PORT=8000 ARGS="--invite ann"   people rank the answers in a browser
#   make loop CONFIG=configs/mine.yaml ROUNDS=2   rounds of labeling, reward model and PPO, each with the latest policy
#   make results-demo SEEDS="0 1 2"   the whole pipeline under several seeds, with means and standard deviations
#   make plan CONFIG=configs/mine.yaml GPUS=8 ARGS="--gpu_memory 80"   GPU memory of each stage

PYTHON ?= python3
CONFIG ?= configs/demo.yaml
# The recipes quote CONFIG and RUN, so the shell does not expand `~`.
at_home = $(if $(filter ~/%,$(firstword $1)),$(patsubst ~/%,$(HOME)/%,$1),$1)
override CONFIG := $(call at_home,$(CONFIG))
override RUN := $(call at_home,$(RUN))
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
# GPUS and ACCELERATE are checked when LAUNCH is expanded, so that other targets work with any value. ACCELERATE may have
# options after the file.
override GPUS := $(or $(strip $(GPUS)),1)
override ACCELERATE := $(strip $(ACCELERATE))
gpus_checked = $(if $(shell printf '%s' '$(GPUS)' | grep -E '^[1-9][0-9]*$$'),,$(error GPUS=$(GPUS) must be a positive integer, the number of processes; omit it for one))
accelerate_checked = $(if $(shell grep -qs distributed_type $(firstword $(ACCELERATE)) && echo yes),,$(error ACCELERATE=$(ACCELERATE) must begin with an accelerate configuration file, such as configs/accelerate/ddp.yaml))
with_accelerate = $(accelerate_checked)$(VENV)/bin/accelerate launch --config_file $(ACCELERATE) --num_processes $(GPUS) -m
with_torchrun = $(VENV)/bin/torchrun --standalone --nproc_per_node $(GPUS) -m
LAUNCH = $(gpus_checked)$(if $(ACCELERATE),$(with_accelerate),$(if $(filter 1,$(GPUS)),$(PY) -m,$(with_torchrun)))
export HF_HUB_DISABLE_TELEMETRY := 1
# Under nohup SIGHUP (signal 1) is ignored, but torchrun and accelerate handle it unless PET_SIGNALS_TO_HANDLE omits it.
ifneq ($(shell grep 'SigIgn:.*[13579bdf]$$' /proc/self/status 2>/dev/null),)
export PET_SIGNALS_TO_HANDLE := SIGTERM,SIGINT,SIGQUIT
endif

STAGES := sft sft_baseline samples labels reward evaluate_reward ppo evaluate tax report pipeline

# Stages are not prerequisites of each other, so targets run in order even with -j.
.NOTPARALLEL:
.PHONY: setup demo smoke test test-slow test-distributed test-browser torture interrupts bench-data bench-reward bench-ppo bench-scale results-reward results-demo results-ablations check format clean help label data $(STAGES) sft-baseline sweep-kl sweep-ptx loop plan gpu-check

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile
	@echo "stages, each with CONFIG= GPUS= ACCELERATE= ARGS=: data $(STAGES) sweep-kl sweep-ptx, loop with ROUNDS="
	@echo "also: make setup | smoke | check | format | test-slow | test-distributed | test-browser | gpu-check | plan | torture | interrupts | bench-data | bench-reward | bench-ppo | bench-scale | results-reward | results-demo | results-ablations | clean"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; give it as PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(LAUNCH) stages.pipeline --config configs/demo.yaml $(ARGS)

smoke: setup
	@$(PY) -m stages.pipeline --config configs/smoke.yaml --force $(ARGS)

data $(STAGES): setup
	@$(LAUNCH) stages.$@ --config '$(CONFIG)' $(ARGS)

sft-baseline: sft_baseline

# People rank the answers of a run in a browser; first invite them: ARGS="--invite NAME".
PORT ?= 8000

label: setup
	@test -n '$(RUN)' || { echo 'error: give the run folder as RUN=runs/x'; exit 2; }
	@$(PY) -m stages.label '$(RUN)' --port $(PORT) $(ARGS)

# Over-optimization: scores against the KL to SFT; pretraining loss against reward over PPO's coefficients.
sweep-kl sweep-ptx: setup
	@$(LAUNCH) stages.$(subst -,_,$@) --config '$(CONFIG)' $(ARGS)

# Rounds of samples, labels, reward model and PPO, each with the latest policy; the report shows the win rate by round.
ROUNDS ?= 2

loop: setup
	@$(LAUNCH) stages.loop --config '$(CONFIG)' --rounds $(ROUNDS) $(ARGS)

plan: setup
	@$(PY) -m stages.plan --config '$(CONFIG)' --gpus $(GPUS) $(ARGS)

test: setup
	@HF_HUB_OFFLINE=1 $(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	@HF_HUB_OFFLINE=1 $(PY) -m pytest -m slow

# Stages on several processes with sharded models, on a CPU.
test-distributed: setup
	@HF_HUB_OFFLINE=1 $(PY) -m pytest -m slow tests/distributed

# The ranking page in a real browser; needs playwright and a Chromium. AXE_SCRIPT=axe.min.js adds an accessibility check.
test-browser: setup
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[browser]'
	@$(PY) -m pytest -m slow -rs tests/labeling/web

# Tests, a tiny pipeline, speed and memory on one GPU; writes runs/gpu-check.md for bug reports.
gpu-check: setup
	@HF_HUB_OFFLINE=1 $(PY) -m benchmarks.gpu_check

# Kills stages at random moments; the results must be bit-identical to those of uninterrupted runs.
# ARGS="--stages sft samples --kills 4"
torture: setup
	@$(PY) -m tests.torture $(ARGS)

# Sends signals at random moments of stages; every run must end with one sentence and the signal's exit code.
interrupts: setup
	@$(PY) -m tests.stages.interrupts $(ARGS)

bench-data: setup
	@$(PY) -m benchmarks.data $(ARGS)

# What reward model and PPO are measured beside, each in an environment of its own; trl 1.12 is the last with PPO. The marker is made last, so that a
# failed install starts over.
PEERS := runs/bench/peers

$(PEERS)/trl-%/.installed: | setup
	rm -rf $(@D)
	$(PY) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 datasets accelerate peft trl==$*.0
	@touch $@

bench-reward: setup $(PEERS)/trl-1.16/.installed
	@$(PY) -m benchmarks.reward --peer_python $(PEERS)/trl-1.16/bin/python $(ARGS)

bench-ppo: setup $(PEERS)/trl-1.12/.installed
	@$(PY) -m benchmarks.ppo --peer_python $(PEERS)/trl-1.12/bin/python $(ARGS)

# Two processes against one; needs two idle cores.
bench-scale: setup
	@$(PY) -m benchmarks.scale $(ARGS)

# The tables of docs/results.md: a configuration under several seeds. Reward models get a split of their own for each seed.
SEEDS ?= 0 1 2
# The configuration's name without its suffix, with _ for characters that a shell would interpret.
NAME = $(shell basename '$(CONFIG)' | sed 's/\.[^.]*$$//; s/[^[:alnum:]._-]/_/g')

SEED_ARGS = --config '$(CONFIG)' --seed $$seed --run_name results-$(NAME)-seed$$seed
SEED_RUNS = $(foreach seed,$(SEEDS),runs/results-$(NAME)-seed$(seed))

results-reward: setup
	@for seed in $(SEEDS); do for stage in data sft samples labels reward; do $(PY) -m stages.$$stage $(SEED_ARGS) --data.split_salt $$seed $(ARGS) || exit $$?; done; done
	@$(PY) -m reports.seeds $(SEED_RUNS)

# The whole pipeline, with the same held-out users for each seed; writes a report that compares the runs, and the table of their headline numbers.
results-demo: setup
	@for seed in $(SEEDS); do $(LAUNCH) stages.pipeline $(SEED_ARGS) $(ARGS) || exit $$?; done
	@$(PY) -m stages.report $(SEED_RUNS) --out runs/results-$(NAME)
	@$(PY) -m reports.seeds --headline $(SEED_RUNS) > runs/results-$(NAME)/seeds.md
	@cat runs/results-$(NAME)/seeds.md

# Variants of the demo, each with the seeds of results-demo, from which they take the stages that would be the same. Best-of-n from SFT is left out.
VARIANTS ?= $(notdir $(basename $(wildcard configs/ablations/*.yaml)))
ABLATIONS := runs/ablations

results-ablations: results-demo
	@for seed in $(SEEDS); do for variant in $(VARIANTS); do \
	  $(LAUNCH) stages.pipeline --config '$(CONFIG)' --config configs/ablations/$$variant.yaml --seed $$seed \
	    --runs_folder $(ABLATIONS) --run_name $$variant-seed$$seed --reuse runs/results-$(NAME)-seed$$seed \
	    --evaluate.best_of_n 0 $(ARGS) || exit $$?; \
	done; done
	@$(PY) -m reports.ablations $(SEED_RUNS) $(foreach variant,$(VARIANTS),$(foreach seed,$(SEEDS),$(ABLATIONS)/$(variant)-seed$(seed))) \
	  --picture $(ABLATIONS)/ablations.png > $(ABLATIONS)/ablations.md
	@cat $(ABLATIONS)/ablations.md

check: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: setup
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean:
	@! find runs -name people -type d 2>/dev/null | grep . || { echo "error: these folders hold labels of people: move them away first"; exit 2; }
	rm -rf $(VENV) runs *.egg-info .pytest_cache .mypy_cache .ruff_cache
