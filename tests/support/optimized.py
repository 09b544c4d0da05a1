"""What ONNX Runtime makes of a graph before it runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from trt_cls.engines import onnxruntime as engine


def optimized(path: Path) -> onnx.ModelProto:
    """The file as a session of the product runs it on this processor."""
    options = engine._options(onnxruntime, None)
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=engine.UNSOUND
    )
    return onnx.load(path.with_suffix(".optimized"))


def by_level(path: Path, images: Any) -> dict[str, Any]:
    """What the file answers in a session of its user's own, by the level of ONNX Runtime's optimization."""
    found = {}
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = engine.ERRORS_ONLY
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (found[level],) = session.run(None, {"input_1": images})
    return found


def integer_kernels(model: onnx.ModelProto) -> set[str]:
    """Operators that compute with integers: what they answer depends on the processor."""
    names = {node.op_type for node in model.graph.node}
    return {name for name in names if name.startswith(("QLinear", "QGemm", "QAttention")) or "Integer" in name}


def quantized_layers(model: onnx.ModelProto) -> int:
    """Convolutions and products in float that read what a DequantizeLinear gives; of weights that is computed once."""
    makers = {name: node for node in model.graph.node for name in node.output}

    def origin(name: str) -> str:
        node = makers.get(name)
        while node is not None and node.op_type in ("Cast", "Transpose", "ReorderInput"):
            node = makers.get(node.input[0])
        return node.op_type if node is not None else ""

    products = [node for node in model.graph.node if node.op_type in ("Conv", "FusedConv", "Gemm", "MatMul")]
    return sum(origin(node.input[0]) == "DequantizeLinear" for node in products)
