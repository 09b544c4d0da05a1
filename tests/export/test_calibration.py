from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trt_cls.contract import Contract
from trt_cls.errors import ExportError
from trt_cls.export.int8.qdq import measure_magnitudes
from trt_cls.export.sample_images import images_for

pytest.importorskip("onnxruntime")


def test_magnitudes_are_those_of_the_network_on_the_pixels_of_inference(
    fp32: onnx.ModelProto, network: Any, contract: Contract, pictures: Path
) -> None:
    import torch

    images = images_for(contract.preprocessing, pictures)
    (batch,) = images.batches()
    seen: list[Any] = []
    dense = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    handle = dense.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        network(torch.from_numpy(batch))
    handle.remove()
    (pooled,) = [node.input[0] for node in fp32.graph.node if node.op_type == "Gemm"]
    found = measure_magnitudes(fp32, ["input_1", pooled], images.batches())
    assert found["input_1"].largest == np.abs(batch).max()
    assert found[pooled].largest == pytest.approx(float(seen[0].abs().max()), rel=1e-4)
    assert found[pooled].counts.sum() == seen[0].numel()


def test_a_network_that_overflows_is_refused(fp32: onnx.ModelProto) -> None:
    batch = np.full((1, 3, 32, 32), np.inf, np.float32)
    with pytest.raises(ExportError, match="NaN or infinity"):
        measure_magnitudes(fp32, ["input_1"], [batch])
