# make demo and make test set up what they need; see README.md.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test lint peers bench screenshots clean

setup: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/forward-inf demo

# A process for each core, each with whole files, whose tests share stores and audits; in the order
# of their names, or the files with few but long tests would all come last.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=term --cov-fail-under=90

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What our scores are compared with, in an environment of its own; our package, which one benchmark
# runs beside them, needs pandas.
peers: .venv-peers/.ready

.venv-peers/.ready: benchmarks/peers/requirements.txt constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --requirement benchmarks/peers/requirements.txt pandas
	touch $@

# Each can be run alone; see benchmarks/RESULTS.md.
bench: export OMP_NUM_THREADS = 1
bench: $(READY) peers
	$(BIN)/python benchmarks/demo_seeds.py
	$(BIN)/python benchmarks/detectors.py
	$(BIN)/python benchmarks/tabular.py
	$(BIN)/python benchmarks/kinds.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/calibration_targets.py
	$(BIN)/python benchmarks/lds.py
	$(BIN)/python benchmarks/further_training.py
	$(BIN)/python benchmarks/neighbours.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/candidates.py
	$(BIN)/python benchmarks/fact_tracing.py --quick
	$(BIN)/python benchmarks/diffusion.py --quick
	$(BIN)/python benchmarks/resume.py
	$(BIN)/python benchmarks/gate.py

screenshots: $(READY)
	$(BIN)/python docs/screenshots.py

clean:
	rm -rf .venv .venv-peers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
