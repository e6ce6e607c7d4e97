# `make demo` and `make test` need git, make and Python >= 3.11, nothing else. Both set .venv up once and reuse it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OLDEST ?= .venv-oldest
OLDEST_TESTS ?= tests/losses tests/module tests/callbacks tests/data --ignore=tests/data/decoding \
    tests/faults/test_old_checkpoints.py \
    $(addprefix tests/test_,balance.py composer.py lightning.py loggers.py mixin.py module.py optim.py \
    optimizer_steps.py schedules.py signals.py train.py)
# One more than cores: some tests wait for processes that they start.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')
DEMO_ARGS ?=
BENCHMARKS ?=
FAULTS_REPORT ?= build/faults.jsonl
FAULTS ?= tests/faults tests/ddp tests/curves tests/data/catalogue/test_quarantine.py tests/command/test_launch.py

.PHONY: demo test test-oldest test-slow faults mutation docs lint types format benchmarks pretrained clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@

# The plain student and deep mutual learning side by side, from the same start, on the same clips in the same order;
# three quarters of the benchmark's epochs, validated every third.
demo: $(VENV)/.installed
	$(BIN)/python -m lit_distill.compare experiments=[plain,dml] 'variants={plain: baseline}' seeds=1 jobs=2 \
	    trainer=cpu folder=runs/demo preset.epochs=15 +trainer.check_val_every_n_epoch=3 $(DEMO_ARGS)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --doctest-modules src tests

# A part of the suite on the oldest versions that pyproject.toml admits; the first time installs some 5 GB.
$(OLDEST)/.installed: pyproject.toml tests/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -c $(OLDEST)/constraints.txt -e '.[digits,tensorboard,test]'
	touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto $(OLDEST_TESTS)

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# The long form of the fault suite; its figures go into docs/reliability.md.
faults: $(VENV)/.installed
	mkdir -p $(dir $(FAULTS_REPORT)) && rm -f $(FAULTS_REPORT)
	OMP_NUM_THREADS=1 LIT_DISTILL_FAULTS_REPORT=$(abspath $(FAULTS_REPORT)) $(BIN)/python -m pytest -n auto $(FAULTS) -m 'slow or not slow'
	$(BIN)/python tests/faults/summarise.py $(FAULTS_REPORT)

# Each protection taken out in turn: its test must turn red.
mutation: $(VENV)/.installed
	$(BIN)/python tests/faults/mutate.py

# The site of docs/, API reference included: build/docs/index.html. Warnings are errors.
docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/prose.py
	$(BIN)/codespell src conf docs benchmarks examples *.md

types: $(VENV)/.installed
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The libraries that benchmarks compare with; a benchmark that lacks one leaves its section as it is.
$(VENV)/.benchmarks: $(VENV)/.installed
	$(BIN)/python -m pip install -e '.[dev,benchmarks]' && touch $@ || echo "going on without what can't be installed"

# Every section of benchmarks/RESULTS.md again; BENCHMARKS=--list prints the minutes of each.
benchmarks: $(VENV)/.benchmarks
	$(BIN)/python benchmarks/run.py $(BENCHMARKS)

# The weights that the package ships, from nothing: stills, then clips, of digits that the embedded benchmark does not have.
pretrained: $(VENV)/.installed
	$(BIN)/python benchmarks/pretrained.py

clean:
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache .pytest_cache dist build
