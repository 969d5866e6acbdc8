# Everything from a fresh clone needs only make and python3 (3.11 or newer).
#
#   make demo     install, train a small network on digits, compress it, print before and after
#   make test     install with the developers' tools, run all tests
#   make check    style, import layers, types, and the site built strictly
#   make docs     the site, in build/site/index.html
#   make bench    benchmarks/RESULTS.md anew, from what the benchmarks left in benchmarks/results
#   make web      fetch the browser's runtimes for smidgen serve (needs npm)
#   make axe      fetch what tests look for accessibility faults with (needs npm)
#   make arm64    an ARM64 root, emulated, in build/arm64: with it "make test" runs a bundle there too (700 MB)
#   make clean    remove what make made

PYTHON ?= python3
VENV ?= .venv
# One torch version, named first: a plain "torch" may bring gigabytes of packages for graphics cards.
TORCH ?= torch==2.13.0
# Test processes; each computes in one thread, so that they do not crowd each other. One that is done takes tests from the
# others (worksteal): doctests take seconds each and come last.
JOBS ?= auto
ARGS ?=

BIN := $(VENV)/bin
# The stamp carries the checksum of pyproject.toml: another pyproject installs again, the same one does not.
KEY := $(shell cksum pyproject.toml | cut -d ' ' -f 1)
DEMO := $(VENV)/.installed-demo-$(KEY)
DEV := $(VENV)/.installed-dev-$(KEY)

export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# mkdocs-material greets every build with the plans of others.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test check docs bench format web axe arm64 clean

demo: $(DEMO)
	$(BIN)/smidgen demo $(ARGS)

test: $(DEV)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --warnings
	$(BIN)/mkdocs build --strict --quiet

docs: $(DEV)
	$(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

bench: $(DEV)
	$(BIN)/python benchmarks/report.py

arm64: $(DEV)
	PYTHON=$(BIN)/python tools/arm64_root.sh

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

web: $(DEMO)
	$(BIN)/python -m smidgen.serve.vendor

axe: $(DEV)
	$(BIN)/python tools/fetch_axe.py

clean:
	rm -rf $(VENV) smidgen/serve/vendor build dist smidgen-demo *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "smidgen needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The developers' installation holds the demo's too.
$(DEMO): | $(BIN)/python
	@test -e $(DEV) || { echo "installing smidgen (once; some minutes)" && \
	  $(BIN)/python -m pip install --quiet "$(TORCH)" && \
	  $(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[demo]"; }
	@touch $@

$(DEV): | $(BIN)/python
	@echo "installing smidgen and the developers' tools (once; some minutes)"
	@$(BIN)/python -m pip install --quiet "$(TORCH)"
	@$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[dev]"
	@touch $@
