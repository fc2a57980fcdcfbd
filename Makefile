# make demo: one question answered from examples/data. make test: what CI runs. Both install what they need into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# Torch's threads wait for each other by spinning, which costs a machine with few cores dearly.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint format matrix bench clean

demo: $(VENV)/.user
	$(BIN)/luotuo ask examples/data "试用期可以请年假吗？" --store $(VENV)/demo-index

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The framework combinations, each in an overlay of its own, on this Python.
matrix: $(VENV)/.dev
	$(BIN)/python tests/combinations.py

bench: $(VENV)/.dev
	$(PIP_INSTALL) --group bench
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/example_questions.py
	$(BIN)/python benchmarks/train.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

# torch first and alone: its wheel is by far the largest, and everything else then accepts the one that is there.
$(VENV)/.user: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable ".[all]"
	touch $@

$(VENV)/.dev: $(VENV)/.user
	$(PIP_INSTALL) --group dev
	touch $@
