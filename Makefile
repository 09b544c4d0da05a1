# make demo   trains, exports and evaluates real handwritten digits (sets everything up first)
# make test   runs the tests                                       (sets everything up first)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-slow test-gpu check format proto size bench

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[train,timm,cpu,rtx,demo,dev]"
	touch $@

demo: $(READY)
	$(BIN)/trt-cls demo -r runs/demo

test: $(READY)
	$(BIN)/pytest -m "not slow"

# Every architecture through export and engine, the large sweeps of image sizes.
test-slow: $(READY)
	$(BIN)/pytest -m slow

test-gpu: $(READY)
	$(BIN)/pytest -m gpu

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# After an edit of the .proto: writes trt_cls/spec/experiment_pb2.py anew.
proto: $(READY)
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. trt_cls/spec/experiment.proto

size: $(READY)
	@$(BIN)/python tests/size.py

# IMAGES: a folder of photographs, one sub-folder per class.
bench: $(READY)
	for script in benchmarks/*.py; do $(BIN)/python $$script --images "$(IMAGES)" || exit 1; done
