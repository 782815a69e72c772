# What can be done with this folder. Each target sets up what it needs; PYTHON chooses the interpreter.
#   setup   .venv with the pinned versions          demo    a small run on generated images
#   test    the tests                               slow    the tests that take minutes
#   lint    ruff and pyright                        docs    the site, in site/; fails on a dead link
#   lock    pins all versions anew                  newest  the tests with the newest versions
#   parity  our networks beside torchvision, Keras  peers   what the benchmark compares with
#   soak    a run that is killed again and again    fuzz    damaged images and weights
#   extras  the tests of ONNX and the page          audit   known security holes in the pinned versions
#   aot     compiles for GPUs and TPUs              aot-check   a part of it, as assertions
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PARITY := .venv-parity
PEERS  := .venv-peers
EXTRAS := .venv-extras
AOT    := .venv-aot
PIP    := -m pip install --quiet --disable-pip-version-check
HASHED := $(PIP) --require-hashes
LOCK   := .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
          --no-emit-index-url --custom-compile-command "make lock"

# Installs the lock file $(2) into the environment $(1). One of its packages is published as source
# only; the lock's own setuptools builds it, so no other build tool is fetched.
define locked
	$(PYTHON) -m venv --clear $(1)
	sed -n '/^setuptools==/,/[^\\]$$/p' $(2) > $(1)/build_tools.txt
	$(1)/bin/python $(HASHED) -r $(1)/build_tools.txt
	$(1)/bin/python $(HASHED) --no-build-isolation --use-pep517 -r $(2)
endef

.PHONY: setup demo test slow docs lint lock parity peers extras soak fuzz audit newest aot aot-check

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(call locked,$(VENV),requirements.lock)
	$(BIN)/python $(PIP) --no-deps --no-build-isolation -e .
	touch $@

demo: $(STAMP)
	$(BIN)/python main.py --config=configs/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

# The tests that are left out of `test` because they take minutes or need the network.
slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

soak: $(STAMP)
	$(BIN)/python -m tools.soak --folder=runs/soak

fuzz: $(STAMP)
	$(BIN)/python -m tools.fuzz

# Asks pip-audit about known security holes in the pinned versions. Needs the network.
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python $(PIP) pip-audit==2.10.0
	.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

# The tests with the newest versions that pyproject.toml allows: PYTHON=python3.12 make newest
newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python $(PIP) --upgrade --upgrade-strategy=eager -e '.[dev]'
	.venv-newest/bin/python -m pytest

# No network: fonts and search are local. The test checks README's links, limits and code blocks.
# Not --quiet: it drops the warnings that --strict counts.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest tests/test_docs.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Compares our networks with torchvision's and Keras', which are installed for this. Python 3.11.
parity: $(PARITY)/.installed
	$(PARITY)/bin/python -m tools.parity
	$(PARITY)/bin/python -m tools.preprocessing

$(PARITY)/.installed: requirements.lock tools/parity_requirements.txt tools/torch_requirements.txt
	$(call locked,$(PARITY),requirements.lock)
	$(PARITY)/bin/python $(HASHED) --no-deps -r tools/parity_requirements.txt
	touch $@

# The tests of ONNX programs, of their compression and of the page, with what these need. Apart from
# .venv, as jax2onnx asks for an older Orbax, and Gradio for an older Pillow.
extras: $(EXTRAS)/.installed
	$(EXTRAS)/bin/python -m pytest tests/deployment

$(EXTRAS)/.installed: requirements_extras.lock pyproject.toml
	$(call locked,$(EXTRAS),requirements_extras.lock)
	$(EXTRAS)/bin/python $(PIP) --no-deps --no-build-isolation -e .
	touch $@

# Installs what `benchmarks/run.py --peers` compares with. Python 3.11.
peers: $(PEERS)/.installed

$(PEERS)/.installed: requirements.lock benchmarks/peers_requirements.txt tools/torch_requirements.txt
	$(call locked,$(PEERS),requirements.lock)
	$(PEERS)/bin/python $(HASHED) --no-deps -r benchmarks/peers_requirements.txt
	touch $@

# Compiles our programs for GPUs and TPUs that are not there, for the table of docs/performance.md:
# about 50 minutes. Python 3.11.
aot: $(AOT)/.installed
	$(AOT)/bin/python -m benchmarks.aot --output=benchmarks/aot.json

# A few of them, with what must hold of each: about 3 minutes.
aot-check: $(AOT)/.installed
	$(AOT)/bin/python -m benchmarks.aot --check

$(AOT)/.installed: requirements.lock benchmarks/aot_requirements.txt
	$(call locked,$(AOT),requirements.lock)
	$(AOT)/bin/python $(HASHED) --no-deps -r benchmarks/aot_requirements.txt
	touch $@

# Pins every version with its hash, for every supported Python. Needs the network.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv==0.13.9
	$(LOCK) --extra dev pyproject.toml --output-file requirements.lock
	$(LOCK) --extra dev --extra onnx --extra serve --extra browser pyproject.toml --output-file requirements_extras.lock
