from __future__ import annotations

import logging
import warnings
from collections import Counter
from typing import Any

import pytest
import torch

from support.operators import wanted_operators
from support.records import activation, outline
from trt_cls.models import build
from trt_cls.spec.experiment import ModelConfig

NETWORKS = {
    "resnet-pooled": ({"n_layers": 10, "use_pooling": True, "retain_head": True}, {"Conv", "Relu", "MaxPool", "Add"}),
    "resnet-swish": ({"n_layers": 10, "activation": activation("swish")}, {"Conv", "Sigmoid", "Mul", "Add"}),
    "vgg": ({"arch": "vgg", "n_layers": 16, "use_pooling": True, "retain_head": True}, {"Conv", "Relu", "MaxPool"}),
    "alexnet": ({"arch": "alexnet"}, {"Conv", "Relu", "MaxPool"}),
    "googlenet": ({"arch": "googlenet"}, {"Conv", "Relu", "MaxPool", "Concat"}),
    "mobilenet_v1": ({"arch": "mobilenet_v1"}, {"Conv", "Relu"}),
    "mobilenet_v2": ({"arch": "mobilenet_v2"}, {"Conv", "Relu", "Add"}),
    "squeezenet": ({"arch": "squeezenet"}, {"Conv", "Relu", "MaxPool", "Concat"}),
    "darknet": ({"arch": "darknet", "n_layers": 19}, {"Conv", "LeakyRelu", "MaxPool"}),
    "cspdarknet": (
        {"arch": "cspdarknet", "n_layers": 19, "activation": activation("mish")},
        {"Conv", "Mish", "MaxPool", "Concat"},
    ),
    "cspdarknet_tiny": ({"arch": "cspdarknet_tiny"}, {"Conv", "LeakyRelu", "MaxPool", "Concat", "Slice"}),
    "efficientnet_b0": ({"arch": "efficientnet_b0"}, {"Conv", "Sigmoid", "Mul", "Add", "ReduceMean"}),
}
PLAIN = {name: parts for name, parts in NETWORKS.items() if parts[0].keys() <= {"arch", "n_layers"}}
"""`test_architectures` compares their files with `wanted_operators`."""
HEADS = [{"ReduceMean", "Gemm"}, {"AveragePool", "Reshape", "Gemm"}, {"Reshape", "Gemm"}]
"""What the mean over the map, resnet's pooling and a flattened map come to."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in PLAIN])
def test_the_onnx_graph_holds_nothing_but_the_network(name: str) -> None:
    options, body = NETWORKS[name]
    network = build(ModelConfig(input_image_size="3,64,64", use_batch_norm=True, **options), 10).eval()
    operators = exported_operators(network)
    assert any(set(operators) == body | head for head in HEADS), operators
    assert operators["Conv"] == sum(isinstance(module, torch.nn.Conv2d) for module in network.children())
    assert operators["Reshape"] <= 1


@pytest.mark.parametrize("name", PLAIN)
def test_the_layers_become_nothing_but_these_operators(name: str) -> None:
    options, body = NETWORKS[name]
    operators = wanted_operators(outline(ModelConfig(input_image_size="3,64,64", use_batch_norm=True, **options)))
    assert operators.pop("Softmax") == 1
    assert any(set(operators) == body | head for head in HEADS), operators


def exported_operators(network: torch.nn.Module) -> Counter[str]:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    dynamic: Any = {"images": {0: torch.export.Dim("N")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, *network.input_shape),),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None
    return Counter(node.op_type for node in program.model_proto.graph.node)
