# make setup | demo | test | slow | lint | lock | parity | peers | soak | fuzz | audit | newest. Each target does its own set-up; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PARITY := .venv-parity
PEERS  := .venv-peers
PIP    := -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo test slow lint lock parity peers soak fuzz audit newest

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(PIP) --require-hashes -r requirements.lock
	$(BIN)/python $(PIP) --no-deps --no-build-isolation -e .
	touch $@

demo: $(STAMP)
	$(BIN)/python main.py --config=configs/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

# What is left out of `test` because it takes minutes.
slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

soak: $(STAMP)
	$(BIN)/python -m tools.soak --folder=runs/soak

fuzz: $(STAMP)
	$(BIN)/python -m tools.fuzz

# Known holes in the pinned versions. Needs the network.
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python $(PIP) pip-audit==2.10.0
	.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

# The tests with the newest versions of the ranges in pyproject.toml: PYTHON=python3.12 make newest
newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python $(PIP) --upgrade --upgrade-strategy=eager -e '.[dev]'
	.venv-newest/bin/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Our networks beside torchvision's and Keras', which are installed for this alone. Python 3.11.
parity: $(PARITY)/.installed
	$(PARITY)/bin/python -m tools.parity
	$(PARITY)/bin/python -m tools.preprocessing

$(PARITY)/.installed: requirements.lock tools/parity_requirements.txt
	$(PYTHON) -m venv --clear $(PARITY)
	$(PARITY)/bin/python $(PIP) --require-hashes -r requirements.lock
	$(PARITY)/bin/python $(PIP) -r tools/parity_requirements.txt
	$(PARITY)/bin/python $(PIP) --no-deps torchvision==0.28.0
	touch $@

# What `benchmarks/run.py --peers` compares with, in an environment of its own. Python 3.11.
peers: $(PEERS)/.installed

$(PEERS)/.installed: requirements.lock benchmarks/peers_requirements.txt
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python $(PIP) --require-hashes -r requirements.lock
	$(PEERS)/bin/python $(PIP) torch==2.13.0
	$(PEERS)/bin/python $(PIP) --no-deps -r benchmarks/peers_requirements.txt
	touch $@

# Pins every version, for every supported Python, with hashes. Needs only pip.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv==0.13.9
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --extra dev pyproject.toml --output-file requirements.lock
