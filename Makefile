# The two verbs of the README are `make demo` and `make test`; everything runs in .venv, which the first call sets up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
READY := $(VENV)/.installed-$(shell cat requirements.lock pyproject.toml CMakeLists.txt patchsae_kernels/native/* | cksum | cut -d' ' -f1)

# What the kernels run with on a machine with a GPU, beside the lock: versions in an environment of their own.
VERSIONS ?= lock
ifeq ($(filter lock gpu,$(VERSIONS)),)
$(error VERSIONS is $(VERSIONS); expected lock or gpu)
endif
VENV_GPU := .venv-gpu
GPU_LOCK := tests/gate/requirements-gpu.lock
GPU_READY = $(VENV_GPU)/.installed-$(shell cksum < $(GPU_LOCK) | cut -d' ' -f1)

# The libraries whose files open here, which ask for half of the index, in an environment of their own.
VENV_PEERS := .venv-peers
PEERS := tests/peers
PEERS_READY = $(VENV_PEERS)/.installed-$(shell cksum < $(PEERS)/requirements.lock | cut -d' ' -f1)

PYTHON312 ?= $(firstword $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null) \
  $(addsuffix /bin/python3.12,$(shell pyenv prefix 3.12 2>/dev/null)))
GATE_PYTHON = $(if $(filter gpu,$(VERSIONS)),$(VENV_GPU),$(VENV))/bin/python
GATE_READY = $(if $(filter gpu,$(VERSIONS)),$(GPU_READY),$(READY))
INTERPRETED = TRITON_INTERPRET=1
# Two processes of two threads would starve each other.
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal -n

# Else every process that a test starts compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test test-peers lint gate interpret python312 shuffled sanitize bench lock clean

demo: $(READY)
	RUN=$(RUN) PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

# What two cores answer in three minutes: lint and all that is not slow, on fewer examples, without compiling for GPUs.
check: lint
	$(TESTS) 2 -m "not slow" --hypothesis-profile quick --ignore tests/gate
	$(INTERPRETED) $(TESTS) 2 -m "not slow" --hypothesis-profile quick tests/triton

# Three processes for two cores: many a slow test waits for processes of its own.
test: $(READY)
	$(TESTS) 3
	$(INTERPRETED) $(TESTS) 3 tests/triton

# Files of other projects against the libraries that write and read them. The compiled extension is not asked here.
test-peers: $(PEERS_READY)
	OMP_NUM_THREADS=1 $(VENV_PEERS)/bin/python -m pytest $(PEERS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Every kernel compiled for four GPUs without one; the last line says how many are refused. VERSIONS: lock or gpu.
gate: $(GATE_READY)
	OMP_NUM_THREADS=1 $(GATE_PYTHON) -m tests.gate

# The kernels in Triton's interpreter, which `make test` runs as well. VERSIONS: lock or gpu.
interpret: $(GATE_READY)
	$(INTERPRETED) OMP_NUM_THREADS=1 $(GATE_PYTHON) -m pytest -n 2 --dist worksteal tests/triton

python312:
	@echo $(PYTHON312)

# The same in three random orders of every kernel's programs.
shuffled: $(READY)
	for seed in 1 2 3; do \
	  PROGRAM_ORDER=$$seed $(INTERPRETED) $(TESTS) 2 tests/triton \
	    --ignore-glob='*/test_gpu_bench*' --ignore-glob='*/test_gate_of*' || exit 1; \
	done

sanitize: $(READY)
	PYTHON=$(CURDIR)/$(BIN)/python .ci/sanitize

bench: $(READY)
	$(BIN)/python -m benches

# Exact versions of everything; the metadata in pyproject.toml holds ranges.
lock:
	uv pip compile --universal --python-version 3.10 --no-emit-index-url --no-header --extra dev --extra hub \
	  --extra tensorboard --extra wandb --no-annotate \
	  -o requirements.lock pyproject.toml --upgrade
	uv pip compile --python-version 3.12 --python-platform linux --no-emit-index-url --no-header --no-annotate \
	  -o $(GPU_LOCK) tests/gate/requirements-gpu.in --upgrade
	uv pip compile --python-version 3.12 --python-platform linux --no-emit-index-url --no-header --no-annotate \
	  -o $(PEERS)/requirements.lock $(PEERS)/requirements.in --excludes $(PEERS)/not-needed.in --upgrade

$(READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "uv>=0.9,<1"
	$(BIN)/uv pip install --python $(BIN)/python --quiet --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-build-isolation --no-deps -e .
	rm -f $(VENV)/.installed-* && touch $@

# An environment of Python 3.12 with exactly what a lock says: $(call python312_with,FOLDER,LOCK)
define python312_with
	@test -n "$(PYTHON312)" || { echo "$(1) needs Python 3.12: name one by PYTHON312=..." >&2; exit 1; }
	$(BIN)/uv venv --quiet --clear --python $(PYTHON312) $(1)
	$(BIN)/uv pip install --python $(1)/bin/python --quiet --compile-bytecode --no-deps -r $(2)
	touch $@
endef

$(GPU_READY): $(READY)
	$(call python312_with,$(VENV_GPU),$(GPU_LOCK))

$(PEERS_READY): $(READY)
	$(call python312_with,$(VENV_PEERS),$(PEERS)/requirements.lock)

clean:
	rm -rf $(VENV) $(VENV_GPU) $(VENV_PEERS) build
