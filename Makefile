# facelab: `make train` and `make test` need nothing but Python (3.10 to 3.13) and make; the environment .venv is made
# at the first call, and again when its requirements change. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train test test-data test-gpu test-slurm test-versions soak lint audit format bench margins wheel clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="…" is passed on: make train ARGS="loss=cosface seed=2"'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 14) else "facelab needs Python 3.10 to 3.13, $(PYTHON) is %d.%d: make PYTHON=python3.12 …" % v)'
	@test -x $(RUN) || { echo "making the environment $(VENV) (a few minutes the first time) …"; $(PYTHON) -m venv $(VENV); }
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## the environment .venv with all that training, tests and lint need

train: $(READY) ## train a tiny network on rendered faces, two to five minutes on two cores
	@$(RUN) -m facelab.train $(ARGS)

# A file of tests stays in one process, whose fixtures it shares; those that take long come early enough.
test: $(READY) ## all tests that a CPU can run, on all cores; ARGS="-n 0" on one, one after another
	@$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-data: $(READY) ## the tests on real faces alone (../shared/data)
	@$(RUN) -m pytest -m data $(ARGS)

test-gpu: $(READY) ## the tests that need a CUDA device
	@$(RUN) -m pytest -m gpu $(ARGS)

test-slurm: $(READY) ## the tests on a Slurm cluster of one machine, started for them (root; Debian's slurm-wlm, munge)
	@$(RUN) slurm/cluster.py $(RUN) -m pytest -m slurm tests/slurm $(ARGS)

test-versions: $(READY) ## all tests on every Python there is, with the lowest and newest libraries; hours, gigabytes
	@$(RUN) tests/versions.py $(ARGS)

soak: $(READY) ## hundreds of signals, a million of hostile inputs, 10,000 steps in flat memory; hours; ARGS="--help"
	@$(RUN) tests/faults/soak.py $(ARGS)

lint: $(READY) ## ruff, mypy, and whether the installed packages agree
	@$(RUN) -m pip --disable-pip-version-check check
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

audit: $(READY) ## known weaknesses of the installed packages (asks a service on the network; installs pip-audit)
	@$(RUN) -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.7'
	@$(RUN) -m pip_audit --local --skip-editable $(ARGS)

format: $(READY) ## let ruff put the code into shape
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

bench: $(READY) ## measure loader, training step and start-up; results go to benchmarks/results/
	@$(RUN) benchmarks/loader.py $(ARGS)
	@$(RUN) benchmarks/train_step.py
	@$(RUN) benchmarks/train_step.py --backbones tiny --precisions bf16 --ours both prelu memory none --batch 128
	@$(RUN) benchmarks/distillers.py
	@$(RUN) benchmarks/startup.py
	@$(RUN) benchmarks/sweep.py
	@$(RUN) benchmarks/epoch_start.py

margins: $(READY) ## draw what the margins of conf/loss do: docs/margins.png
	@$(RUN) -m facelab.report.margins out=docs/margins.png

wheel: $(READY) ## build dist/*.whl and the source archive
	@$(RUN) -m build --quiet

clean: ## remove .venv and what was built, not runs/
	rm -rf $(VENV) .versions dist build *.egg-info .pytest_cache .ruff_cache .mypy_cache
