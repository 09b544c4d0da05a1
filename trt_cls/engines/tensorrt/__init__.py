"""TensorRT engines on an NVIDIA GPU: bindings (`api`), the engine with its buffers, the pipeline on the GPU.

Does not know: how a plan is built, which is `export/tensorrt.py`. Begin with `engine.py`.
"""

from trt_cls.engines.tensorrt.engine import TensorRtEngine

__all__ = ["TensorRtEngine"]
