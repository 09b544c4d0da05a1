"""A network that was trained as INT8 computes becomes a file with the ranges of its training, and answers as it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("narrow")
from torch import nn  # noqa: E402

from support.calibration import calibrate  # noqa: E402
from support.trained_layers import assert_layers_find_their_nodes, in_int8  # noqa: E402
from trt_cls.artefacts.model_file import read_contract  # noqa: E402
from trt_cls.artefacts.sidecar import read_sidecar  # noqa: E402
from trt_cls.contract import INPUT, OUTPUT, Contract  # noqa: E402
from trt_cls.engines.onnxruntime import session_of  # noqa: E402
from trt_cls.errors import ExportError, RequestError  # noqa: E402
from trt_cls.export.export import export  # noqa: E402
from trt_cls.export.int8 import Int8, trained_for_int8  # noqa: E402
from trt_cls.export.int8.qdq import trained_layers, with_qdq  # noqa: E402
from trt_cls.export.torch_to_onnx import onnx_from_module  # noqa: E402
from trt_cls.models import build  # noqa: E402
from trt_cls.models.checkpoint import save_checkpoint  # noqa: E402
from trt_cls.models.int8_layers import restore_layers, trained_ranges  # noqa: E402
from trt_cls.spec.experiment import ModelConfig  # noqa: E402

LIBRARIES = [
    "timm/test_efficientnet",
    "timm/mobilenetv3_small_050",
    "torchvision/resnet18",
    "torchvision/vit_b_16",
]


def quantized(model: ModelConfig) -> tuple[nn.Module, Any]:
    """A network in INT8, and the images that its ranges are from."""
    torch.manual_seed(0)
    images = torch.randn(8, *model.input_shape)
    return in_int8(calibrate(build(model, 5), images), images), images


@pytest.mark.parametrize("arch", ["resnet", *(pytest.param(arch, marks=pytest.mark.slow) for arch in LIBRARIES)])
def test_each_layer_of_the_training_finds_its_node_and_what_it_reads(arch: str, contract: Contract) -> None:
    """Of the other families `test_architectures` holds it, on the files that it exports."""
    if "/" in arch:
        pytest.importorskip(arch.split("/")[0])
    size = 32 if arch in ("resnet", "torchvision/vit_b_16") else 64  # resnet is that of the other tests
    model = ModelConfig(arch=arch, n_layers=10, input_image_size=f"3,{size},{size}", use_batch_norm=True)
    network, images = quantized(model)
    restore_layers(network)
    pixels = replace(contract.preprocessing, height=size, width=size)
    graph = onnx_from_module(network, replace(contract, model=model, preprocessing=pixels)).proto
    assert_layers_find_their_nodes(network, images, graph, all_layers="/" not in arch)


def test_the_graph_answers_as_the_network_in_training_did(contract: Contract) -> None:
    network, images = quantized(contract.model)
    with torch.inference_mode():
        expected = torch.softmax(network(images), dim=1).numpy()
    ranges = trained_ranges(network)
    restore_layers(network)
    with torch.inference_mode():
        in_float = torch.softmax(network(images), dim=1).numpy()
    graph = onnx_from_module(network, contract).proto
    found = probabilities(with_qdq(graph, *trained_layers(graph, ranges)), images)
    equal, apart = (np.abs(answers - expected).max(axis=1) for answers in (found, in_float))
    # Where two engines' sums differ in the last bit a value may go to the next step, and an untrained network makes
    # more of that from layer to layer; an image without such a value has the same answer.
    assert np.count_nonzero(equal < 1e-6) >= len(images) / 2
    assert apart.min() > 1e-4


def probabilities(model: onnx.ModelProto, images: Any) -> Any:
    return session_of(model).run([OUTPUT], {INPUT: images.numpy()})[0]


@pytest.fixture
def trained(contract: Contract, tmp_path: Path) -> Path:
    network, _ = quantized(contract.model)
    path = tmp_path / "trained.safetensors"
    save_checkpoint(path, network, replace(contract, precision="int8"))
    return path


def test_the_file_has_the_ranges_of_the_training(trained: Path, contract: Contract) -> None:
    network, _ = quantized(contract.model)
    ranges = trained_ranges(network)
    model = trained_for_int8(network, contract, lambda line: None).proto
    assert trained_ranges(network) == {}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scales = {
        node.input[0]: values[node.input[1]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in values
    }
    # in float16, to the bit
    assert {float(scale) for scale in scales.values()} == {part / 127 for parts in ranges.values() for part in parts}


def test_it_is_exported_as_it_is_with_an_engine(trained: Path, contract: Contract, pictures: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    said: list[str] = []
    onnx_file = trained.with_suffix(".onnx")
    result = export(trained, onnx_file, images=pictures, builder="tensorrt-rtx", say=said.append)
    assert result.precision == "int8"
    assert not any("calibrat" in line for line in said)
    assert read_contract(onnx_file) == replace(contract, precision="int8", eight_bits=1.0)
    assert read_sidecar(trained.with_suffix(".engine")).contract.precision == "int8"
    before = onnx_file.read_bytes()
    export(trained, onnx_file, precision="int8", images=pictures, builder="none")
    assert onnx_file.read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precision": "fp16"}, "computes in int8, and fp16 was asked for"),
        ({"precision": "int8", "int8": Int8(batches=2)}, "computes in int8 with ranges of its own"),
        ({"int8": Int8(keep=("first",))}, "computes in int8 with ranges of its own"),
        ({"int8": Int8(max_loss=1.0)}, "computes in int8 with ranges of its own"),
    ],
)
def test_what_would_change_its_numbers_is_refused(asked: Any, message: str, trained: Path, pictures: Path) -> None:
    with pytest.raises(RequestError, match=message):
        export(trained, trained.with_suffix(".onnx"), images=pictures, builder="none", **asked)
    assert not trained.with_suffix(".onnx").exists()


def test_a_layer_that_the_graph_lacks_is_an_error(fp32: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="1 of 2 layers that were trained for INT8 are not in the graph, as lost"):
        trained_layers(fp32, {"conv1": (1.0,), "lost": (2.0,)})
