# Everything a working copy needs, from a bare Python (>= 3.10) and make: `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
# Where the demo puts its dataset, derivatives and work files.
DEMO ?= demo
# What `train-pack` prepares the volumes of; the file says where they go.
CONFIG ?= configs/mmln.toml
# The one variable that chooses the build of torch: the URL of one of PyTorch's wheel indexes (CPU, or the CUDA
# release of your driver, e.g. the one called cu130). Unset, pip takes torch from where it is configured to look.
#   make install TORCH_INDEX=<URL of the wheel index>
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
       $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-faults test-slurm coverage docs lint format audit train-pack clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "$(PYTHON) is too old: Python >= 3.10 is needed; name one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## make .venv and install the package, the tests' and the developers' tools

demo: install  ## register a simulated subject with the BIDS App and print the recovered deformation
	$(BIN)/python -m mmln_pipeline.demo $(DEMO)

# The tests are shared by so many processes, file by file; small volumes gain nothing from many threads.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
test test-all coverage: export OMP_NUM_THREADS ?= 1
test-faults test-slurm: export OMP_NUM_THREADS ?= 2

test: install  ## run the tests and doctests, except the slow ones (real brains are used where they are found)
	$(PYTEST) -m "not slow"

test-all: install  ## run every test, the slow ones included
	$(PYTEST)

test-faults: install  ## kill, fill, lock and crowd the BIDS App, and print what came of it (minutes; Linux)
	PYTHONPATH=tests $(BIN)/python benchmarks/faults.py

test-slurm: install  ## run the BIDS App on a SLURM cluster of one node, and disturb it (root; slurm-wlm and munge)
	PYTHONPATH=tests $(BIN)/python benchmarks/slurm.py

coverage: install  ## run the tests and say which lines they reach
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered

docs: install  ## build the documentation without network; warnings are errors
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky docs docs/_build/html
	@echo docs/_build/html/index.html

# Types and layers are those of the package as it is installed, with `workflows` and `bids_app` inside it: by links.
lint: install  ## check style, types and the layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/linked && mkdir -p build/linked/mmln_pipeline
	@ln -s $(CURDIR)/mmln_pipeline/* $(CURDIR)/workflows $(CURDIR)/bids_app build/linked/mmln_pipeline/
	cd build/linked && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml
	cd build/linked && $(abspath $(BIN))/lint-imports --no-cache --config $(CURDIR)/pyproject.toml
	@rm -rf build/linked

format: install  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A mirror that answers but knows no advisories must not pass for a clean bill: --strict fails what was not looked up.
audit:  ## look up known weaknesses of the pinned packages (needs PyPI; nothing is installed but pip-audit, apart)
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt

train-pack: install  ## preprocess the training volumes that CONFIG names
	$(BIN)/python -m mmln_pipeline.training.pack $(CONFIG)

clean:  ## remove what the other targets made, except the demo's results
	rm -rf $(VENV) build dist docs/_build *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache
