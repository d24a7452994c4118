# Every target makes its own .venv first: a fresh clone needs only Python >= 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
STAMP := $(VENV)/.installed

.PHONY: install demo test check format bench soak test-gpu clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch jax jaxlib
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## the whole path on generated ticks, or on real ones: make demo DATA=folder
	$(BIN)/featurestore demo $(if $(DATA),--data $(DATA))

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## benchmarks/results/*.json, each with the machine's description
	$(BIN)/python -m benchmarks

soak: $(STAMP)  ## the long counts: 100,000 generated cases, 1,000 kills, every fault at every step; hours
	FEATURESTORE_SOAK=1 $(BIN)/python -m pytest -n 2 --dist loadfile --timeout 0 -m "soak or counted"

test-gpu: $(STAMP)  ## needs an NVIDIA GPU and the light loader dependencies
	$(BIN)/python -m pytest -m gpu tests/loaders

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
