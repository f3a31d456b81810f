# `make` lists the targets. Each sets up .venv itself and makes it anew when constraints.txt or pyproject.toml change.

PYTHON ?= python3
SUITE ?= suites/quick.yaml
ARGS ?=
BASELINE ?= results/$(basename $(notdir $(SUITE)))
CANDIDATE ?= build/gate/$(basename $(notdir $(SUITE)))
AGAINST ?=
IDENTICAL ?=
RESULTS ?= $(patsubst %/records.csv,%,$(wildcard results/*/records.csv))

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help bench plots table report gate test check microbench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@printf '  %-26s %s\n' \
	  'SUITE=$(SUITE)' 'the suite that bench and gate run' \
	  'AGAINST=' 'gate: a commit to be timed against, such as HEAD^; no times if not given' \
	  'BASELINE=$(BASELINE)' 'gate: the results whose quality is the measure' \
	  'IDENTICAL=' 'gate: 1 if no output was to change; any that does is a regression then' \
	  'ARGS=' 'more arguments for bench run, plot, table, report, gate or pytest' \
	  'RESULTS=' 'the folders that plots, table and report read; all of results/ if not given' \
	  'PYTHON=$(PYTHON)' 'the interpreter (3.11 to 3.13) that .venv is made with'

bench: $(READY)  ## Run a suite: results/<suite>/ with records, tables, figures and a page
	$(BIN)/python -m bench run $(SUITE) $(ARGS)

plots: $(READY)  ## Draw the figures again, from the records alone
	@test -n "$(RESULTS)" || { echo "no results/*/records.csv: run 'make bench' first" >&2; exit 3; }
	$(BIN)/python -m bench plot $(RESULTS) $(ARGS)

table: $(READY)  ## Write the tables again, from the records alone
	@test -n "$(RESULTS)" || { echo "no results/*/records.csv: run 'make bench' first" >&2; exit 3; }
	$(BIN)/python -m bench table $(RESULTS) $(ARGS)

report: $(READY)  ## Write the pages again, from the records alone
	@test -n "$(RESULTS)" || { echo "no results/*/records.csv: run 'make bench' first" >&2; exit 3; }
	$(BIN)/python -m bench report $(RESULTS) $(ARGS)

# A cell that fails (2) is a finding of the gate; what keeps the suite from running at all is none, and then there are no
# records either, old ones being gone.
gate: $(READY)  ## Run a suite anew and say whether anything has become worse: outputs, and with AGAINST times
	rm -f $(CANDIDATE)/records.csv
	$(BIN)/python -m bench run $(SUITE) --set measure.speed=null --out $(CANDIDATE) $(ARGS) || test $$? = 2
	$(BIN)/python -m bench gate --baseline $(BASELINE) --candidate $(CANDIDATE) \
	  $(if $(AGAINST),--against $(AGAINST) --suite $(SUITE),--quality-only) $(if $(filter-out 0,$(IDENTICAL)),--identical) \
	  --markdown $(CANDIDATE)/gate.md --junit $(CANDIDATE)/gate.xml $(ARGS)

test: check  ## Lint, types and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

check: $(READY)  ## Lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

microbench: $(READY)  ## Time the hot pieces: a cached step, beam reorder, collapse, Viterbi, a pass of each family
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/benchmarks -p no:xdist --benchmark-enable --benchmark-only $(ARGS)

clean:  ## Remove .venv and caches; results and stored artifacts stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find bench models tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so a set-up that was interrupted is started over.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null || { \
	  echo "natbench needs Python 3.11 to 3.13, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1 | tail -n 1)" >&2; \
	  echo "name another: make PYTHON=python3.12 ..." >&2; exit 3; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
