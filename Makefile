# Two commands do everything on a fresh machine: `make loop` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AUDIT := .venv-audit
CONFIG ?= square8_2p
PRESET ?= smoke
# Empty: as many as the preset has (smoke 2; hour 13, on hex8 9, on square19 6, on hexagonal 5); $RINGRIFT_DATA, or else data.
GENERATIONS ?=
DATA ?=
WORKERS ?= 3

.PHONY: help setup loop ui test kernels whole playwright browser servers services auditor audit lint bench clean

help:
	@echo "make loop   play, train, evaluate and gate generations of CONFIG=$(CONFIG) (PRESET=$(PRESET): minutes;"
	@echo "            PRESET=hour: about an hour), kept in DATA, ./data unless set"
	@echo "make ui     open the Dagster UI on what the loop made"
	@echo "make test   lint, types and the test suite"
	@echo "make whole  the tests of whole loops and servers, a minute each"
	@echo "make browser  the pages in a real browser (needs Chromium)"
	@echo "make services  workers with Redis and PostgreSQL, artefacts in a bucket, with real servers"
	@echo "make audit  known holes in the packages of constraints.txt (needs the network)"
	@echo "make bench  every benchmark, quick form"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# One file of timm is what a test compares with; the rest of it would want torchvision.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm
	@touch $@

loop: setup
	@$(BIN)/ringrift loop --config $(CONFIG) --preset $(PRESET) \
		$(if $(GENERATIONS),--generations $(GENERATIONS)) $(if $(DATA),--data $(DATA))

ui: setup
	@$(BIN)/ringrift ui --config $(CONFIG) $(if $(DATA),--data $(DATA))

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# The kernels are compiled once, before the workers of the test run would each do it; one core does that,
# the other lint and types meanwhile.
test: setup
	@$(MAKE) --no-print-directory -j2 lint kernels
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

kernels: setup
	@$(BIN)/python -m ringrift_pipeline.selfplay.warm_up

# What takes a minute each would keep `make test` from being run often; .ci/run runs it after that.
whole: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'whole and not faults and not services' tests

# Chromium comes with the system (Debian: apt install chromium); RINGRIFT_CHROMIUM names another.
playwright: $(VENV)/.playwright

$(VENV)/.playwright: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@touch $@

browser: playwright
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser tests/web/test_browser.py

# Redis and PostgreSQL come with the system (Debian: apt install redis-server postgresql iproute2).
servers: $(VENV)/.servers

$(VENV)/.servers: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[services]'
	@touch $@

# They wait for servers more than they work; a file's tests share its servers.
services: servers
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'services and not faults' tests

# In an environment of its own, and the newest there is.
auditor:
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip-audit

# Without --strict a package that the database could not be asked about counts as one without holes.
audit: auditor
	@$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt $(AUDIT_OPTIONS)

bench: setup
	@for file in benchmarks/*.py; do $(BIN)/python $$file --quick || exit 1; done

clean:
	rm -rf $(VENV) $(AUDIT) build dist *.egg-info
