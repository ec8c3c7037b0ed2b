# make train and make test set up .venv by themselves, on a machine with or without a GPU; both are safe to repeat.
# To use another interpreter or environment: make test PYTHON=python3.12 VENV=/path/to/venv
# To build for a torch of your choice, install it into .venv first.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

bin := $(VENV)/bin
ready := $(VENV)/.entmask-installed
sources := pyproject.toml setup.py $(shell find build_backend csrc -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup train test simt bench lint format clean

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

# On a machine with a card, with or without a network. Each step takes ten minutes at most, can be made alone, and writes to OUT:
#   make gpu-tests OUT=/tmp/results
# The interpreter is .venv's where there is one, else PYTHON. Tests skip, by name, where it lacks a package that they need.
# Kernels are built for the cards that are here.
SHELL := bash
OUT ?= docs/gpu/$(shell date +%Y-%m-%d)
LIMIT ?= 580
gpu_python = $(or $(wildcard $(bin)/python),$(PYTHON))
gpu_pytest = $(gpu_python) -m pytest -q -m 'gpu and not long' -p no:cacheprovider \
    $(shell $(gpu_python) -c 'import xdist' 2>/dev/null && echo -n 8)
sanitizers := memcheck racecheck initcheck synccheck
# Every kernel, on few sizes: a sanitizer makes each of them many times slower. Other kernels than ours are left alone, except
# where it matters what they have written.
sanitized := -k 'equal or agree or where_is_where or values_and_gradients or hard_to_unite'
.PHONY: gpu gpu-build gpu-tests gpu-speed $(sanitizers:%=gpu-%)

gpu: gpu-tests $(sanitizers:%=gpu-%) gpu-speed

gpu-build:
	mkdir -p $(OUT)
	set -o pipefail; ENTMASK_CUDA=1 \
	    TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | tr '\n' ';')}" \
	    timeout $(LIMIT) $(gpu_python) setup.py build_ext --inplace 2>&1 | tee $(OUT)/build.txt
	$(gpu_python) -m entmask_ext > $(OUT)/environment.txt
	nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv >> $(OUT)/environment.txt

gpu-tests: gpu-build
	set -o pipefail; timeout $(LIMIT) $(gpu_pytest) -rs $(ARGS) | tee $(OUT)/tests.txt

$(sanitizers:%=gpu-%): gpu-%: gpu-build
	set -o pipefail; PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout $(LIMIT) \
	    compute-sanitizer --tool $* $(if $(filter-out initcheck,$*),--kernel-regex kns=entmask) --error-exitcode 1 \
        --target-processes all $(gpu_pytest) $(sanitized) | tee $(OUT)/$*.txt

gpu-speed: gpu-build
	set -o pipefail; timeout $(LIMIT) $(gpu_python) -m benchmarks --device cuda --minutes 8 --out $(OUT)/benchmarks $(ARGS) | tee $(OUT)/speed.txt

# The long runs of the kernels without torch: sanitizers, and for CUDA, full-size traffic and what the machine code has.
simt: setup
	$(bin)/python -m pytest tests/simt tests/cpu -m long -n auto --dist loadfile $(ARGS)

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
