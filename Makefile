# make demo and make test do all the set-up on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export MPLBACKEND := Agg
# processes that run the tests, each with one thread
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test test-slow lint clean install

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python scripts/pipeline.py experiment=demo

test: $(STAMP) lint
	$(PYTEST) -m "not slow and not gpu and not weights and not slurm"

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu and not weights and not slurm"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf outputs multirun .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
