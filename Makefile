# make run    digits sweep of model sizes, and its law (about 15 minutes on 2 slow cores)
# make test   the default test suite
# make check  formatter, linter, types
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: run test test-slow check
run: $(INSTALLED)
	$(BIN)/gat-sweep run sweeps/widths.yaml --recipe digits
	$(BIN)/gat-sweep fit-law widths-digits
	@echo "MLflow UI: $(BIN)/gat-sweep ui, then open http://127.0.0.1:5000"

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# constraints.txt holds the versions the suite is run with; the bounds in pyproject.toml are wider.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)
