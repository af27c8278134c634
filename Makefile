# Two commands on a fresh machine: `make demo` and `make test`. Python >= 3.11 is all they need. `make docs` builds the site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo docs lock test test-slow

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.demo --out demo

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: $(VENV)/.installed-dev
	$(PYTEST) -m 'not slow'

# The rest: the smoke run of every experiment, the examples, and tests of over two seconds or so.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

# The site, in site/. Any warning, such as a broken link, is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m mkdocs build --strict

# What the tests need, in one version each, with hashes, for every supported Python. It is installed by
#   pip install --require-hashes -r requirements.lock && pip install --no-deps --editable .
lock: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet 'uv>=0.9,<1'
	$(BIN)/python -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-emit-index-url --custom-compile-command 'make lock' --extra dev --output-file requirements.lock setup.py

$(VENV)/.installed: requirements.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jaxinvert needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# All optional libraries, so that the tests of their networks and frameworks run, too. TORCH narrows the release.
TORCH ?= torch
$(VENV)/.installed-all: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[integrations]' '$(TORCH)'
	touch $@
