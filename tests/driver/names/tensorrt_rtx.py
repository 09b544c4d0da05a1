"""TensorRT-RTX's names, over those of TensorRT in tests/gpu/tensorrt_over_cuda: what it has beside them."""

from __future__ import annotations

from typing import Any

import tensorrt
from tensorrt import *  # noqa: F403

__version__ = tensorrt.__version__


class CudaGraphStrategy:
    WHOLE_GRAPH_CAPTURE = "whole"


class ComputeCapability:
    CURRENT = "current"


class RuntimeConfig:
    cuda_graph_strategy: str


class BuilderConfig(tensorrt.BuilderConfig):
    num_compute_capabilities: int

    def set_compute_capability(self, capability: str, index: int) -> bool:
        return True


class Builder(tensorrt.Builder):
    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()


class Engine(tensorrt.Engine):
    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: Any = None) -> tensorrt.Context:
        return tensorrt.Context(self)


class Runtime(tensorrt.Runtime):
    engine = Engine
