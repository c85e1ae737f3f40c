# `make demo` searches the embedded model, `make test` runs the tests; each sets up its virtual environment first.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
NAME ?= digits

.PHONY: setup demo check test docs site soak exports lint dist clean

setup: $(VENV)/.installed

# torch comes first and alone, so that a machine with a local CPU build takes that one.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/skipsearch run digits --name $(NAME) $(if $(wildcard results/$(NAME)/study.db),--resume)

# Linters, types and the tests of files that take a few seconds.
check: lint
	$(BIN)/python -m pytest -q -n 3 --dist loadfile -m "not slow and not soak"

# One process more than cores, since searches wait for Ray to start and to stop.
test: setup
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations 10

# The documentation in build/site; `site` serves it. Material's notice of its end in 2027 is in docs/README.md.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# Kills, dead nodes, signals, ten minutes of fuzzing, and the cases of which `make test` takes a sample.
soak: setup
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-20000} $(BIN)/python -m pytest -q -m soak tests --ignore tests/exports

# Real vLLM, llama.cpp and lmms-eval, in environments of their own; a tool that is missing is an error.
exports: setup
	$(BIN)/python tests/exports/find_tools.py
	$(BIN)/python -m pytest -q -m soak tests/exports

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy policies exports evaluators recovery search testing
	cd docs/generate && MYPYPATH=. $(abspath $(BIN))/mypy --explicit-package-bases --config-file ../../pyproject.toml .
	$(BIN)/lint-imports

# The source archive, and the wheel from it; both are checked as the package index checks them.
DIST ?= dist
dist: setup
	$(BIN)/python -m build --outdir $(DIST) . >$(DIST).log 2>&1 || { cat $(DIST).log; exit 1; }
	$(BIN)/python -m twine check --strict $(DIST)/*.tar.gz $(DIST)/*.whl
	$(BIN)/python .ci/wheel_is_whole.py $(DIST)/*.whl

clean:
	rm -rf $(VENV) build dist dist.log *.egg-info
