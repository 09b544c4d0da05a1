# make demo   trains, exports and evaluates real handwritten digits (sets everything up first)
# make test   runs the tests                                       (sets everything up first)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A worker collects all tests and loads torch, 10 seconds of CPU: more than eight gain nothing. A worker that has
# nothing left takes the last tests of another: those of a file stay together but for that, with its fixtures.
WORKERS ?= auto
PARALLEL := --numprocesses=$(WORKERS) --maxprocesses=8 --dist=worksteal
# Compiled files are kept: without them each worker and each process that a test starts compiles the package and the
# tests anew, ten seconds of CPU a run. Containers often set it.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-slow test-oldest test-driver test-gpu gpu-evidence check format size bench bench-gpu wheels

setup: $(READY)

$(READY): pyproject.toml setup.py constraints.txt kernels/preprocess_host.cpp
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/trt-cls demo -r runs/demo

test: $(READY)
	$(BIN)/pytest $(PARALLEL) -m "not slow"

# Architectures through export and engine, the large sweeps of image sizes.
test-slow: $(READY)
	$(BIN)/pytest $(PARALLEL) -m slow

# Training with the oldest versions allowed of what changes most, in an environment of their own.
OLD := torch|torchvision|timm
test-oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	grep -vE '^($(OLD)|triton|nvidia-.*|cuda-.*)==' constraints.txt > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/pip install --quiet --disable-pip-version-check --constraint $(VENV)-oldest/constraints.txt \
		--editable ".[dev]" $$(grep -oE '"($(OLD))>=[0-9.]+"' pyproject.toml | sed 's/>=/==/' | tr -d '"')
	$(VENV)-oldest/bin/pytest $(PARALLEL) -m "not slow" tests/training tests/models tests/data

# The GPU's code through the real pycuda, over a driver played by the CPU. Takes g++ and a CUDA Toolkit, and skips without;
# the first time pycuda is built, six minutes, into the user's cache.
test-driver: $(READY)
	$(BIN)/python tests/driver/run.py

# Needs an NVIDIA GPU, pycuda, nvcc and compute-sanitizer. `READY= BIN=/usr/bin` uses the machine's own Python.
test-gpu: $(READY)
	@$(BIN)/python -c "import sys; from importlib.util import find_spec; from trt_cls.gpu import visible_gpu; \
		sys.exit('no pycuda beside the GPU: its tests would skip; pip install pycuda' if visible_gpu() and not find_spec('pycuda') else 0)"
	$(BIN)/pytest -m gpu
	compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python tests/gpu/small_batches.py
	compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/python tests/gpu/small_batches.py

# All that only a GPU can show, in some four minutes; OUT: a folder for logs and figures. IMAGES as for bench, or none.
gpu-evidence: $(READY)
	$(BIN)/python tests/gpu/evidence.py $(or $(OUT),runs/gpu) $(if $(IMAGES),--images "$(IMAGES)")

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/size.py circles

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# dist/: the sdist, and a wheel for x86_64 and for aarch64.
wheels: $(READY)
	$(BIN)/python release/wheels.py

# Lines that hold a token, modules, and what is above its limit.
size: $(READY)
	@$(BIN)/python tests/size.py

# IMAGES: a folder of photographs, one sub-folder per class.
bench: $(READY)
	for script in evaluate_pipeline image_loading; do $(BIN)/python benchmarks/$$script.py --images "$(IMAGES)" || exit 1; done
	$(BIN)/python benchmarks/training_step.py

# ONNX: a model that trt-cls exported.
bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu_preprocessing.py
	$(BIN)/python benchmarks/gpu_training_loader.py --images "$(IMAGES)"
	$(BIN)/python benchmarks/training_step.py --device cuda --batch 64 --variants eager graphs
	$(BIN)/python benchmarks/gpu_pipeline.py --onnx "$(ONNX)" --images "$(IMAGES)"
