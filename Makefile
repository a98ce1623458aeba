# The two verbs of the README are `make demo` and `make test`; everything runs in .venv, which the first call sets up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
READY := $(VENV)/.installed-$(shell cat requirements.lock pyproject.toml CMakeLists.txt patchsae_kernels/native/* | cksum | cut -d' ' -f1)

.PHONY: demo test lint sanitize bench lock clean

demo: $(READY)
	RUN=$(RUN) PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal  # two processes of two threads would starve each other
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/triton

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sanitize: $(READY)
	PYTHON=$(CURDIR)/$(BIN)/python .ci/sanitize

bench: $(READY)
	$(BIN)/python -m benches

# Exact versions of everything; the metadata in pyproject.toml holds ranges.
lock:
	uv pip compile --universal --python-version 3.10 --no-emit-index-url --no-header --extra dev --extra hub \
	  --extra tensorboard --extra wandb --no-annotate \
	  -o requirements.lock pyproject.toml --upgrade

$(READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "uv>=0.9,<1"
	$(BIN)/uv pip install --python $(BIN)/python --quiet --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-build-isolation --no-deps -e .
	rm -f $(VENV)/.installed-* && touch $@

clean:
	rm -rf $(VENV) build
