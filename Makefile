# Everything a person needs: `make quickstart`, `make test`, `make bench [BENCH=name]`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
BENCH ?=

.PHONY: install quickstart test lint bench clean

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep ^torch== constraints.txt)"
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e ".[test]"
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/foundation quickstart --config configs/quickstart.yaml

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks $(BENCH)

clean:
	rm -rf $(VENV) runs build *.egg-info
