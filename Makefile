# Everything on a fresh machine with Python 3.11 or newer: `make demo`, `make test`.
# `make test` is for every change, `make test-all` for every commit, `make test-slow` for a release.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: demo test test-all test-slow docs lint types format clean

demo: $(READY)  ## trains 784-50-10 on the embedded MNIST subset by NIT, STBP and STBP-N
	NIT_SNN_DATA= $(BIN)/python examples/mnist_snntorch.py --output runs/demo

test: $(READY) lint types  ## all but the tests that are marked "full" or "slow"
	$(PYTEST) -m "not slow and not full"

test-all: test  ## and the "full" ones: long Monte Carlo tests, whole examples, several processes
	$(PYTEST) -m "full and not slow"

test-slow: $(READY)  ## mutants, self-tests of the oracle, soak, runs that are killed
	$(PYTEST) -m slow

docs: $(VENV)/.docs  ## docs/_build/html; runs the tutorials; any warning is an error
	NIT_SNN_DATA= OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -E -W --keep-going -j 2 docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The package is laid out as it is installed, for mypy cannot see neurons/ as nit_snn.neurons.
types: $(READY)
	rm -rf build/types && mkdir -p build/types
	cp -r nit_snn build/types/nit_snn && cp -r neurons build/types/nit_snn/neurons
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p nit_snn

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[snntorch,spikingjelly,train,robustness,nir,lightning,dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist runs docs/_build *.egg-info
