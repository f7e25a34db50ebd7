# make study: from a fresh clone to figures and report.   make test: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STUDY ?= runs/first
PRESET ?= cpu

.PHONY: install study test test-full lint notebooks clean

install: $(STAMP)

# torch comes first: where there is no GPU, the CPU build (constraints.txt names the version).
$(STAMP): pyproject.toml constraints.txt tools/install.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@BIN=$(BIN) sh tools/install.sh
	@touch $@

study: $(STAMP)
	$(BIN)/srkit run --preset $(PRESET) --study $(STUDY)

# Two processes, a whole file each at a time: files share studies that are dear to make. In the
# order of the folders, where the files that take longest come first.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 15

test: $(STAMP) lint
	$(PYTEST)

test-full: $(STAMP) lint
	$(PYTEST) -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify $(STRIP) notebooks/*.ipynb

# Committed notebooks carry no outputs and no traces of a run.
STRIP := --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution"
notebooks: $(STAMP)
	$(BIN)/nbstripout $(STRIP) notebooks/*.ipynb
	$(BIN)/ruff format notebooks

clean:
	rm -rf $(VENV) build dist
