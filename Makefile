# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
BENCH_INSTALLED = $(VENV)/.bench-installed

.PHONY: demo test attack check format pair bench bench-quick clean

demo: $(INSTALLED)
	$(BIN)/semalign demo --output_dir runs/demo

test: check
	$(BIN)/python -m pytest

# Kills, races, signals and damage in their full number: hours. `make test` tries each of them a few times.
attack: $(INSTALLED)
	SEMALIGN_ATTACK=1 $(BIN)/python -m pytest tests/attack

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Trains the embedded pair again from nothing (under an hour on two cores).
pair: $(INSTALLED)
	$(BIN)/python scripts/build_pair.py

# Measures both sides of every claim and writes docs/benchmarks.md. The real pair's claims need its folders and rows:
#   make bench TEACHER=DIR STUDENT=DIR ROWS=mbpp_train.jsonl
bench: $(BENCH_INSTALLED)
	$(BIN)/python benchmarks/all.py $(if $(TEACHER),--teacher $(TEACHER) --student $(STUDENT) --rows $(ROWS))

bench-quick: $(BENCH_INSTALLED)
	$(BIN)/python benchmarks/all.py --quick

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $(BENCH_INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) runs build dist src/*.egg-info
