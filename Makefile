# make train and make test set up .venv by themselves, on a machine with or without a GPU; both are safe to repeat.
# To use another interpreter or environment: make test PYTHON=python3.12 VENV=/path/to/venv
# To build for a torch of your choice, install it into .venv first.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

bin := $(VENV)/bin
ready := $(VENV)/.entmask-installed
sources := pyproject.toml setup.py $(shell find build_backend csrc -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup train test gpu simt bench lint format clean

setup: $(ready)

$(bin)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: a build finds the torch of the environment, so none is fetched for the build alone.
$(ready): $(bin)/python $(sources)
	$(bin)/python -c "import torch" 2>/dev/null || $(bin)/python -m pip install torch
	$(bin)/python -m pip install -e '.[train,dev]'
	$(bin)/python -m entmask_ext
	touch $@

train: setup
	$(bin)/python -m train fit $(ARGS)

test: setup
	$(bin)/python -m pytest $(ARGS)

# On a machine with a card: what it is, the tests that need it, compute-sanitizer over the kernels, the benchmark. All into a dated folder.
SHELL := bash
gpu_results = docs/gpu/$(shell date +%Y-%m-%d)
sanitized := tests/test_masking.py tests/test_selection.py tests/test_entropy.py tests/test_loss.py tests/test_shuffle.py
gpu: setup
	mkdir -p $(gpu_results)
	$(bin)/python -m entmask_ext > $(gpu_results)/environment.txt
	nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv >> $(gpu_results)/environment.txt
	set -o pipefail; $(bin)/python -m pytest -m gpu $(ARGS) | tee $(gpu_results)/tests.txt
	set -o pipefail; for tool in memcheck racecheck initcheck synccheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	        $(bin)/python -m pytest -q -m gpu $(sanitized) | tee $(gpu_results)/$$tool.txt || exit 1; done
	$(bin)/python -m benchmarks --device cuda --out $(gpu_results)/benchmarks

# The long runs of the kernels without torch: sanitizers, and for CUDA, full-size traffic and what the machine code has.
simt: setup
	$(bin)/python -m pytest tests/simt tests/cpu -m long $(ARGS)

bench: setup
	$(bin)/python -m benchmarks $(ARGS)

c_sources = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

lint: setup
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/clang-format --dry-run -Werror $(c_sources)

format: setup
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(c_sources)

# Leaves .venv; the next make builds again.
clean:
	rm -rf build dist *.egg-info entmask_ext/_C.*.so entmask_ext/_C.*.json $(ready)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
