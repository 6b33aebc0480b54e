# PIP_ARGS goes to every pip install, for example to choose an index with CPU builds of torch.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt

# Where bytecode is never written, every process compiles torch again: 10.3 s instead of 4.8 to import the training.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: chat test test-slow bench docs lint style types clean

chat: $(VENV)/.installed
	$(BIN)/xianliao-serve

# mypy needs one core, and tests sometimes wait: they run at the same time. mypy's output comes after that of the tests.
test: $(VENV)/.installed-test style
	@mkdir -p build
	$(BIN)/mypy >build/types.txt 2>&1 & types=$$!; status=0; \
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile --cov --cov-report= || status=1; \
	wait $$types || status=1; cat build/types.txt; exit $$status
	@printf 'coverage of lines and branches: %s %%\n' "$$($(BIN)/coverage report --format=total)"

# Slow tests that measure nothing share the cores, the longest files first. They often wait for a server, a browser or a file:
# three processes keep two cores busy. Each part runs whatever the other finds.
test-slow: $(VENV)/.installed-test
	status=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not alone" --durations=20 --numprocesses 3 \
		--dist loadfile --no-loadscope-reorder || status=1; \
	$(BIN)/python -m pytest -m "slow and alone" --durations=20 || status=1; \
	exit $$status

bench: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks

# `make docs` writes the API reference. chatbot's modules are named because its __all__ has only what users need, which is
# loaded when it is used; ray_app needs the extra `ray`. Warnings about these two are hidden.
DOCS ?= build/docs
MODULES := $(filter-out %/__main__.py,$(wildcard chatbot/*.py chatbot/*/*.py))
DOCUMENTED := $(subst /,.,$(patsubst %/__init__,%,$(basename $(MODULES)))) data_prep training ui

docs: $(VENV)/.installed-docs
	$(BIN)/python -W "ignore:Couldn't import" -W "ignore:Found '" -m pdoc --docformat google --output-directory $(DOCS) \
		$(DOCUMENTED) '!ui.server.ray_app'
	@echo $(DOCS)/index.html

lint: style types

style: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.prose

types: $(VENV)/.installed-test
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable ".[serve]"
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --no-compile --editable ".[test]"
	touch $@ $(VENV)/.installed $(VENV)/.installed-docs

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable ".[docs]"
	touch $@ $(VENV)/.installed
