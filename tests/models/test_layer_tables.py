from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from support.records import config, outline
from support.shared_data import layer_tables, tao_json
from trt_cls.models.network import INPUT, Network

TABLES = layer_tables()
WITHOUT_MODULE = {"InputLayer", "ZeroPadding2D", "Flatten", "Reshape"}
"""Padding is part of the convolution that follows; a global average flattens."""


def table(name: str) -> dict[str, Any]:
    return tao_json(f"layer_tables/{name}.json")


@cache
def outlined(name: str) -> Network:
    return outline(config(table(name)), table(name)["nclasses"], tao_pooling=True)


def keras_shapes(module: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of a module's weights in Keras' layouts and order."""
    if isinstance(module, nn.BatchNorm2d):
        return [tuple(module.weight.shape)] * 4
    shapes = [tuple(weight.shape) for weight in module.parameters()]
    if isinstance(module, nn.Conv2d):
        outputs, inputs, height, width = shapes[0]
        shapes[0] = (height, width, outputs, inputs) if module.groups > 1 else (height, width, inputs, outputs)
    if isinstance(module, nn.Linear):
        shapes[0] = shapes[0][::-1]
    return shapes


def outputs(network: Network, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Output shape of each layer, without the batch."""
    seen = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, __, value, name=name: seen.update({name: tuple(value.shape[1:])}))
    network.eval()(torch.empty((1, *shape), device="meta"))
    return seen


@pytest.mark.parametrize("name", TABLES)
def test_layers_have_taos_names_and_shapes(name: str) -> None:
    record = table(name)
    network = outlined(name)
    shapes = outputs(network, network.input_shape)
    for layer in record["layers"]:
        own = getattr(network, layer["name"], None)
        if own is None:
            assert layer["type"] in WITHOUT_MODULE or layer["name"] == "output", layer
            continue
        assert keras_shapes(own) == [tuple(shape) for _, shape in layer["weights"]], layer
        if None not in layer["shape"]:
            sides = [side for side in shapes[layer["name"]] if side != 1]
            assert sides == [side for side in layer["shape"] if side != 1], layer


@pytest.mark.parametrize("name", TABLES)
def test_there_are_no_weights_that_tao_has_not(name: str) -> None:
    record = table(name)
    network = outlined(name)
    own = {name.rsplit(".", 1)[0] for name, _ in network.named_parameters()}
    assert own == {layer["name"] for layer in record["layers"] if layer["weights"]}


@pytest.mark.parametrize("name", TABLES)
def test_layers_with_weights_are_wired_as_in_tao(name: str) -> None:
    record = table(name)
    network = outlined(name)
    theirs = {layer["name"]: layer["inputs"] for layer in record["layers"]}
    own = {step.name: step.inputs for step in network.steps}
    weighted = {layer["name"] for layer in record["layers"] if layer["weights"]}
    for layer in weighted:
        assert sources(layer, own, weighted) == sources(layer, theirs, weighted), layer


def sources(layer: str, inputs: dict[str, Any], weighted: set[str]) -> list[str]:
    """The nearest layers with weights that feed `layer`, in order."""
    found = []
    for name in inputs.get(layer, ()):
        found += [name] if name in weighted or name == INPUT else sources(name, inputs, weighted)
    return found
