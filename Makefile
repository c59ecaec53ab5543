# make demo and make test do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# uv, or pip where uv cannot be had
INSTALLER ?= uv
export MPLBACKEND := Agg
# processes that run the tests, each with one thread
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test test-slow test-latest lint docs clean install lock

install:
	@command -v $(PYTHON) >/dev/null || { echo "Python: expected $(PYTHON) on the PATH, got none. Install Python 3.11 or newer, or name it: make install PYTHON=<python3.11>."; exit 1; }
	@$(PYTHON) src/brain2img/installation.py --venv $(VENV) --installer $(INSTALLER)

lock:  # the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra all --extra dev --generate-hashes --upgrade \
		--no-annotate --no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

demo: install
	$(BIN)/brain2img pipeline experiment=demo

test: lint
	$(PYTEST) -m "not slow and not gpu and not weights and not slurm"

test-slow: install
	$(PYTEST) -m "slow and not gpu and not weights and not slurm"

test-latest:  # do the newest versions that are allowed work, beside those of the lock?
	@$(PYTHON) src/brain2img/installation.py --venv .venv-latest --installer $(INSTALLER) --latest
	.venv-latest/bin/brain2img pipeline experiment=demo name=latest paths.outputs=outputs/latest overwrite=true \
		reconstruct.n_stimuli=6
	OMP_NUM_THREADS=1 .venv-latest/bin/python -m pytest tests/encoders tests/spaces tests/reconstructors tests/captioners \
		-m "not slow and not gpu and not weights and not slurm"

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install  # the pages under docs/ as a site
	$(BIN)/mkdocs build --strict --site-dir outputs/site
	@echo "outputs/site/index.html"

clean:
	rm -rf outputs multirun .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .venv-latest
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
