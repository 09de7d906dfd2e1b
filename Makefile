# make demo [AUDIO=folder]   the whole story on a laptop: prepare, pre-train, probe, report
# make test                  all tests; make lint: style, types, spelling
# make soak [AUDIO=folder]   an hour of kills, broken audio and failing processes, with a report
# Each sets up .venv itself, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_FOLDER ?= results/demo
AUDIO ?=
# Tests wait much, for processes to start and to end. Files stay whole and in order: long ones first.
TEST_PROCESSES ?= 2
# For example --threads=2; the environment may say ATEN_CPU_CAPABILITY=default or avx2.
TEST_OPTIONS ?=
SOAK_FOLDER ?= results/soak-$(shell date +%Y%m%d-%H%M%S)
# For example --kills=20 --save_kills=10 --minutes=15
SOAK_OPTIONS ?=

.PHONY: demo test soak lint clean
demo: $(VENV)/.installed-demo
	$(BIN)/python recipes/demo.py $(DEMO_FOLDER) $(if $(AUDIO),--audio="$(AUDIO)")

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder $(TEST_OPTIONS)

soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.soak $(SOAK_FOLDER) $(if $(AUDIO),--audio="$(AUDIO)") $(SOAK_OPTIONS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/yamllint .
	$(BIN)/codespell

# One stamp for each extra: a second run installs nothing. Changing setup.py renews them.
$(VENV)/.installed-%: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; choose it with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) results .pytest_cache .mypy_cache .ruff_cache
