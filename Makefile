# Nothing but make and Python 3.11 or newer (with venv) has to be there: each target makes
# what it needs first, in VENV, from the locked and hashed requirements.
#
#   make test PYTHON=python3.13     another interpreter, in an environment of its own

PYTHON ?= python3
# An environment belongs to the interpreter that made it, so another one gets another folder.
VENV ?= .venv$(if $(filter python3,$(PYTHON)),,-$(notdir $(PYTHON)))
CONFIG ?= config.toml
PORT ?=
ARGS ?=
UPGRADE ?=
FUZZ ?= 200
FAULTS ?= 5

BIN := $(VENV)/bin
SOURCES := $(wildcard uow api tests benchmarks examples docs)
INSTALL := $(BIN)/uv pip install -q --python $(BIN)/python --require-hashes
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
PROJECT := $(COMPILE) pyproject.toml --extra service

# The peers that the hazards are measured on, and that docs/moving moves from: one of them excludes the
# others' FastAPI. The tests look for these folders beside their own environment.
HAZARDS := benchmarks/hazards
PEERS := $(VENV)-peers
PEERS_SQLA := $(VENV)-peers-fastapi-sqla

# The tests of the library cover all of it, without the help of those of the service and of the documents. These
# are not measured, which would cost them a third of their time; nor is a part of the suite (ARGS).
LIBRARY := tests/uow tests/lifecycle tests/faults
COVERAGE := --cov --cov-report=term-missing:skip-covered
# The tests of one file share their servers, so they stay together; how many processes: see tests/conftest.py.
PARALLEL := -n auto --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test fuzz faults check docs bench hazards matrix format lock clean

help:
	@echo 'make run     serve the inventory on 127.0.0.1:8000 (PORT=9000 CONFIG=other.toml)'
	@echo 'make test    every test, with the coverage of uow (a part of them: ARGS="-k commit")'
	@echo 'make fuzz    random requests against the service, new ones in each run (FUZZ=1000: for longer)'
	@echo 'make faults  contention, crashes and cut connections, at length (FAULTS=20: for longer)'
	@echo 'make check   ruff, mypy, pyright and the architecture tests (pyright runs on node)'
	@echo 'make docs    the site of the documentation, in build/docs/site (a broken link is an error)'
	@echo 'make bench   the benchmarks (ARGS="--help" lists their options)'
	@echo 'make hazards what goes wrong with whom: uow and its peers (ARGS="--peer uow")'
	@echo 'make matrix  write which tests hold which promise into docs/lifecycle.md'
	@echo 'make format  put the code in its standard form'
	@echo 'make lock    write the requirements*.lock files anew (UPGRADE=1: with newer versions)'
	@echo 'make clean   remove the environment and what the tools left behind'
	@echo
	@echo 'Another interpreter: make test PYTHON=python3.13'

run: $(VENV)/.run
	@exec $(BIN)/python -m api serve --config $(CONFIG) $(if $(PORT),--port $(PORT))

# The programs of docs/moving run before and after, so the tests need the peers too.
test: $(VENV)/.dev $(PEERS)/.installed $(PEERS_SQLA)/.installed
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest $(PARALLEL) $(COVERAGE) $(LIBRARY)
	@$(BIN)/python -m pytest $(PARALLEL) $(addprefix --ignore=,$(LIBRARY))
endif

fuzz: $(VENV)/.dev
	@FUZZ=$(FUZZ) $(BIN)/python -m pytest -v tests/api/test_schemathesis.py $(ARGS)

faults: $(VENV)/.dev
	@FAULTS=$(FAULTS) $(BIN)/python -m pytest -v $(if $(ARGS),,$(PARALLEL)) tests/faults $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check --output-format=concise $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy --python-executable $(BIN)/python $(SOURCES)
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_architecture.py

docs: $(VENV)/.dev
	@NO_COLOR=1 $(BIN)/python docs/build.py build/docs
	@echo 'The site begins at build/docs/site/index.html'

bench: $(VENV)/.dev
	@$(BIN)/python -m benchmarks $(ARGS)

hazards: $(VENV)/.dev $(PEERS)/.installed $(PEERS_SQLA)/.installed
	@$(BIN)/python -m benchmarks.hazards --python peers=$(PEERS)/bin/python \
		--python fastapi-sqla=$(PEERS_SQLA)/bin/python $(ARGS)

matrix: $(VENV)/.dev
	@$(BIN)/python -m tests.lifecycle.matrix

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The second file takes its versions from the first, so that what is tested is what runs, and so
# does the third: the peers run with what `uow` runs with. The fourth cannot.
lock: $(VENV)/.uv
	$(PROJECT) --group installer -o requirements.lock
	$(PROJECT) --group dev --constraint requirements.lock -o requirements-dev.lock
	$(COMPILE) $(HAZARDS)/requirements.in --constraint requirements.lock -o $(HAZARDS)/requirements.lock
	$(COMPILE) $(HAZARDS)/requirements-fastapi-sqla.in -o $(HAZARDS)/requirements-fastapi-sqla.lock

clean:
	for made in $(VENV) $(PEERS) $(PEERS_SQLA); do test ! -f $$made/pyvenv.cfg || rm -rf $$made; done
	rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -type d -name __pycache__ -prune -exec rm -rf {} +

# One empty file for each state of the environment. A lock that changed is newer than its file,
# and is installed again; otherwise nothing is asked, neither of an index nor of the environment.
$(VENV)/.run: $(VENV)/.uv requirements.lock
	$(INSTALL) -r requirements.lock
	@touch $@

$(VENV)/.dev: $(VENV)/.uv requirements.lock requirements-dev.lock
	$(INSTALL) -r requirements-dev.lock
	@touch $(VENV)/.run $@

$(PEERS)/.installed: $(HAZARDS)/requirements.lock
$(PEERS_SQLA)/.installed: $(HAZARDS)/requirements-fastapi-sqla.lock
$(PEERS)/.installed $(PEERS_SQLA)/.installed: | $(VENV)/.uv
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(@D)
	$(BIN)/uv pip install -q --python $(@D)/bin/python --require-hashes -r $<
	@touch $@

# uv comes from the lock as well: its block there is all that pip ever sees.
$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'This needs Python 3.11 or newer, and "$(PYTHON)" does not start one. Name one: make PYTHON=python3.13 ...' >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'This needs the venv module of "$(PYTHON)" (on Debian: apt install python3-venv).' >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	@touch $@
