# Two commands do everything: `make demo` shows it, `make test` checks it.
# Both make the environment first, in .venv, from hash-checked requirements.
.DEFAULT_GOAL := help
.PHONY: help install demo test bench bench-muon muon-truth bench-sensor scale cells faults statistics image-bias \
  cross-scale timing-truth fuzz held-out sensor-pulls lint lock clean

PYTHON_VERSION := $(shell cat .python-version)
UV := .tools/bin/uv
BIN := .venv/bin

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# uv finds Python $(PYTHON_VERSION) on this machine, or fetches it.
$(UV): .ci/uv.txt
	@python3 -m venv .tools || { echo "make: python3 has no venv module: install it (Debian: apt install python3-venv)" >&2; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/uv.txt
	@touch $@

.venv/installed: requirements.txt pyproject.toml $(UV)
	@echo "making the environment in .venv ..."
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON_VERSION) .venv
	@$(UV) pip sync --quiet --require-hashes --python $(BIN)/python requirements.txt
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@

install: .venv/installed ## make the environment in .venv

demo: .venv/installed ## simulate an array, calibrate it on a local Dask cluster, compare with the truth
	@$(BIN)/calibdask demo demo

# Tests start hundreds of processes. Without bytecode each compiles all that it imports, three times
# the work of its start; BLAS takes one thread, as on workers: the tests themselves run in parallel.
test: .venv/installed ## run all tests
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	  $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# The peer to measure against, in an environment of its own: never a dependency.
.venv-peer/installed: tests/benchmarks/peer-requirements.txt $(UV)
	@echo "making the peer's environment in .venv-peer ..."
	@test -x .venv-peer/bin/python || $(UV) venv --quiet --python $(PYTHON_VERSION) .venv-peer
	@$(UV) pip sync --quiet --require-hashes --python .venv-peer/bin/python tests/benchmarks/peer-requirements.txt
	@touch $@

bench: .venv/installed .venv-peer/installed ## measure time and memory (BENCH="--only warm", see --help)
	@$(BIN)/python tests/benchmarks/bench.py --peer .venv-peer/bin/python $(BENCH)

bench-sensor: .venv/installed ## measure stacks of raw frames (30 GB of disk; SENSOR="--only ram files")
	@$(BIN)/python tests/benchmarks/sensor.py $(SENSOR)

bench-muon: .venv/installed .venv-peer/installed ## the same for muon rings, from tables and from images
	@$(BIN)/python tests/benchmarks/muon_tables.py --peer .venv-peer/bin/python
	@$(BIN)/python tests/benchmarks/muon.py

muon-truth: .venv/installed ## bias and pulls of muon rings drawn photon by photon, 1000 per row (3 min; MUON="--fit ctapipe")
	@$(BIN)/python tests/benchmarks/muon_truth.py $(MUON)

scale: .venv/installed ## measure the engine from ten shards to ten thousand (SCALE="--scale 0.1")
	@PYTHONPATH=tests $(BIN)/python tests/benchmarks/scale.py $(SCALE)

cells: .venv/installed ## cost of 10 000 small cells: processor time, and files in the store (20 s)
	@PYTHONPATH=tests $(BIN)/python tests/benchmarks/many_cells.py

# The table goes on where a run of tests fails, so that it shows what held.
faults: .venv/installed ## do to a real SLURM on this machine what can go wrong, print the table (15 min)
	@slurm/one-machine/start.sh
	@rm -f faults.jsonl
	@CALIBDASK_TEST_SLURM=1 CALIBDASK_FAULTS_TABLE=$(CURDIR)/faults.jsonl $(BIN)/pytest tests/slurm/test_faults.py; \
	  code=$$?; $(BIN)/python tests/slurm/table.py faults.jsonl; exit $$code

statistics: .venv/installed ## pulls and coverage of the errors, 2000 toy arrays per row; checked
	@PYTHONPATH=. $(BIN)/python tests/benchmarks/estimator.py

held-out: .venv/installed ## pulls, coverage and p-values on experiments unlike the model, 200 or more per row
	@PYTHONPATH=. $(BIN)/python tests/benchmarks/held_out.py $(HELD)

image-bias: .venv/installed ## effect by effect, the biases of image sizes and what corrects them (1 min)
	@PYTHONPATH=. $(BIN)/python tests/benchmarks/image_bias.py

cross-scale: .venv/installed ## pulls, coverage and bias of the scales of telescope types, 200 arrays (20 s)
	@PYTHONPATH=. $(BIN)/python tests/benchmarks/cross_scale.py $(CROSS)

timing-truth: .venv/installed ## offsets of telescope times against the truth, with and without what goes wrong
	@PYTHONPATH=. $(BIN)/python tests/benchmarks/timing_truth.py

sensor-pulls: .venv/installed ## pulls of sensor maps with borders, overscan, two amplifiers and flicker (20 s)
	@PYTHONPATH=. $(BIN)/python tests/benchmarks/sensor_pulls.py

fuzz: .venv/installed ## damage inputs of every kind in 560 ways, print what happens (FUZZ="--seed 2"; 10 min)
	@OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/fuzz.py $(FUZZ)

lint: .venv/installed ## check style, types and spelling
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell

clean: ## remove what make made
	rm -rf .venv .tools .venv-peer demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

lock: $(UV) ## resolve pyproject.toml into requirements.txt again
	$(UV) pip compile --quiet --upgrade --universal --python-version $(PYTHON_VERSION) --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --extra dev pyproject.toml -o requirements.txt
