# Everything a person needs: `make quickstart`, `make test`, `make docs`, `make bench [BENCH=name]`,
# `make fuzz [FOR=600 SEED=1]`, `make releases`.
# `make test-cuda-compile` compiles the CUDA kernels of whole models with NVIDIA's packages, without a GPU.
# `make test-all` adds to `make test` what is long, for the night.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
BENCH ?=
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
FOR ?= 600
SEED ?= $(shell date +%s)

.PHONY: install quickstart test test-all test-cuda-compile lint docs bench fuzz releases clean

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
	$(BIN)/foundation quickstart

test: $(VENV)/.installed-test
	$(PYTEST) -m "not long"

test-all: $(VENV)/.installed-test
	$(PYTEST)

# not into the environment of the project, where they would be found as the compiler of a torch that has none
CUDA_TOOLS := build/cuda-tools
$(CUDA_TOOLS)/.installed: $(VENV)/.installed-test
	$(PIP) --no-deps --target $(CUDA_TOOLS) --upgrade nvidia-cuda-nvrtc nvidia-cuda-nvdisasm
	touch $@

test-cuda-compile: $(CUDA_TOOLS)/.installed
	$(BIN)/python -m tests.cuda_compile --tools $(CUDA_TOOLS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e ".[docs]"
	touch $@

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks $(BENCH)

fuzz: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seconds $(FOR) --seed $(SEED)

# the shipped releases again, byte for byte, from the files in the sevenn package
releases: $(VENV)/.installed-test
	for name in sevennet-0 sevennet-l3i5 sevennet-mf-0; do \
		OMP_NUM_THREADS=1 $(BIN)/foundation convert --config configs/convert/$$name.yaml || exit 1; \
	done

clean:
	rm -rf $(VENV) runs build *.egg-info
