# make run    five sizes on MNIST, their law and frontier, and samples by size (about 15 minutes on 2 slow cores)
# make test   the default test suite
# make test-slow  what takes minutes, and every promise of docs/reliability.md, which it writes anew
# make test-changed  the slow tests of the rooms that the last hours' commits touched
# make check  formatter, linter, types
# make docs   docs/config.md from the schema of the config and the recipes
# make bench  the step beside a straightforward one (docs/performance.md); bench-gpu for the paper's sizes
PYTHON ?= python3
VENV ?= .venv
BATCH ?= 64
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: run test test-slow test-changed check docs bench bench-gpu
run: $(INSTALLED)
	$(BIN)/gat-sweep run sweeps/ladder.yaml --recipe mnist --hold w20 --hold XL --hold w128 --hold w160
	$(BIN)/gat-sweep report ladder-mnist
	@echo "MLflow UI: $(BIN)/gat-sweep ui, then open http://127.0.0.1:5000"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or reliability" --figures=docs/reliability.md

# The slow tests of the rooms that the commits of the last four hours touched, where these are few.
test-changed: $(INSTALLED)
	$(BIN)/python tests/changed.py

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python docs/config_reference.py

bench: $(INSTALLED)
	$(BIN)/gat-sweep bench --recipe digits --size S --size B --size L --size XL --threads 1
	$(BIN)/gat-sweep bench --size S --batch 4 --iterations 5

bench-gpu: $(INSTALLED)
	for size in S B L XL; do \
		$(BIN)/gat-sweep bench --size $$size --batch $(BATCH) --set workers.compile=true --device cuda --out bench-$$size.json; \
	done

# constraints.txt holds the versions the suite is run with; the bounds in pyproject.toml are wider.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)
