"""Writes models as Keras 2.2.4 does, from TAO's layer tables, and runs their layers one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from support.reference_weights import batch_norm, depthwise_kernel_and_bias, kernel_and_bias

Layers = list[dict[str, Any]]
Weights = dict[str, list[np.ndarray]]
LISTED = ("name", "type", "inputs", "shape", "weights")
SCOPES = ("kernel:0", "bias:0")
BN_SCOPES = ("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0")


def whole(layer: dict[str, Any]) -> int:
    """As many filters as the family has."""
    return int(layer.get("filters", layer.get("units")))


def narrow(layer: dict[str, Any]) -> int:
    """Few filters, as pruning leaves; the classes stay."""
    if ("units" in layer and layer["activation"] == "softmax") or layer["name"] == "conv10":
        return whole(layer)
    return max(2, whole(layer) // 16 * 2)


def keras_layers(
    table: dict[str, Any], size: tuple[int, int, int], width: Callable[[dict[str, Any]], int] = whole
) -> tuple[Layers, Weights]:
    """The layers of a table (made for 224×224) for images of `size`, as Keras' JSON, and weights by the recipe."""
    layers, weights, shapes = [], {}, {}
    for row in table["layers"]:
        row = row | {"inputs": list(row["inputs"])}
        if row["name"] == "avg_pool" and row["padding"] == "valid":
            pool = [-(-k * side // 224) for k, side in zip(row["pool_size"], size[1:], strict=True)]
            row |= {"pool_size": pool, "strides": pool}
        if row["type"] == "InputLayer":
            row["batch_input_shape"] = [None, *size]
        inputs = [shapes[name] for name in row["inputs"]]
        kernel = row["weights"][0][1] if row["weights"] else []
        arrays: list[np.ndarray] = []
        bias = len(row["weights"]) == 2
        if row["type"] == "BatchNormalization":
            arrays = batch_norm(row["name"], inputs[0][0])
            row |= {"momentum": 0.9, "epsilon": 1e-5, "center": True, "scale": True}
        elif row["type"] == "DepthwiseConv2D":
            arrays = depthwise_kernel_and_bias(row["name"], (*kernel[:2], inputs[0][0], 1), bias)
        elif kernel:
            row["filters" if row["type"] == "Conv2D" else "units"] = filters = width(row)
            arrays = kernel_and_bias(row["name"], (*kernel[:-2], inputs[0][0], filters), bias)
        if "kernel_size" in row:
            row["dilation_rate"] = [1, 1]
        config = {key: value for key, value in row.items() if key not in LISTED}
        calls = [[[name, 0, 0, {}] for name in row["inputs"]]] if row["inputs"] else []
        layers.append(
            {
                "name": row["name"],
                "class_name": row["type"],
                "config": {"name": row["name"], "trainable": True, **config},
                "inbound_nodes": calls,
            }
        )
        weights[row["name"]] = arrays
        zeros = [torch.zeros(1, *shape) for shape in inputs]
        shapes[row["name"]] = size if not zeros else tuple(compute(layers[-1], arrays, zeros).shape[1:])
    return layers, weights


def pruned(layers: Layers, weights: Weights, retained: dict[str, list[int]]) -> tuple[Layers, Weights]:
    """The network with the filters in `retained` alone; for maps that are 1×1 when they are flattened."""
    kept: dict[str, np.ndarray] = {}
    before: dict[str, int] = {}
    for layer in layers:
        name, config = layer["name"], layer["config"]
        sources = [source[0] for call in layer["inbound_nodes"] for source in call]
        if not sources:
            before[name] = config["batch_input_shape"][1]
            kept[name] = np.arange(before[name])
            continue
        parts, before[name] = [], 0
        for source in sources if layer["class_name"] == "Concatenate" else sources[:1]:
            parts.append(kept[source] + before[name])
            before[name] += before[source]
        incoming = kept[name] = np.concatenate(parts)
        arrays = weights[name]
        if layer["class_name"] == "BatchNormalization":
            weights[name] = [array[incoming] for array in arrays]
        elif layer["class_name"] == "DepthwiseConv2D":
            weights[name] = [arrays[0][:, :, incoming], *(bias[incoming] for bias in arrays[1:])]
        elif arrays:
            before[name] = arrays[0].shape[-1]
            kept[name] = np.array(retained.get(name, range(before[name])))
            weights[name] = [arrays[0][..., incoming, :][..., kept[name]], *(bias[kept[name]] for bias in arrays[1:])]
            config["filters" if layer["class_name"] == "Conv2D" else "units"] = len(kept[name])
    return layers, weights


def calibrate(layers: Layers, weights: Weights, images: np.ndarray) -> None:
    """Makes every layer with weights put out values of size 1 for `images`, so that no error fades on its way."""
    values: dict[str, Tensor] = {layers[0]["name"]: torch.from_numpy(images)}
    for layer in layers[1:]:
        arrays = weights[layer["name"]]
        inputs = [values[source[0]] for source in layer["inbound_nodes"][0]]
        if layer["class_name"] == "BatchNormalization":
            arrays[2] = inputs[0].mean((0, 2, 3)).numpy()
            arrays[3] = inputs[0].var((0, 2, 3)).numpy() + np.float32(0.25)
        elif arrays:
            plain = layer | {"config": layer["config"] | {"activation": "linear"}}
            arrays[0] = arrays[0] / compute(plain, arrays, inputs).std().numpy()
        values[layer["name"]] = compute(layer, arrays, inputs)


def write(path: Path, layers: Layers, weights: Weights, name: str = "model_1", compiled: bool = False) -> Path:
    """One file as `model.save()` makes it."""
    config = {
        "name": name,
        "layers": layers,
        "input_layers": [[layers[0]["name"], 0, 0]],
        "output_layers": [[layers[-1]["name"], 0, 0]],
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.2.4"
        file.attrs["backend"] = "tensorflow"
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": config})
        if compiled:
            file.attrs["training_config"] = json.dumps({"loss": "categorical_crossentropy"})
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = np.array([layer["name"].encode() for layer in layers])
        for layer in layers:
            group = root.create_group(layer["name"])
            scopes = BN_SCOPES if layer["class_name"] == "BatchNormalization" else SCOPES
            names = [f"{layer['name']}_3/{scope}" for scope, _ in zip(scopes, weights[layer["name"]], strict=False)]
            group.attrs["weight_names"] = np.array([name.encode() for name in names])
            for scope, array in zip(names, weights[layer["name"]], strict=True):
                group.create_dataset(scope, data=array)
    return path


def run(layers: Layers, weights: Weights, images: np.ndarray) -> np.ndarray:
    """Probabilities."""
    values: dict[str, Tensor] = {layers[0]["name"]: torch.from_numpy(images)}
    for layer in layers[1:]:
        inputs = [values[source[0]] for source in layer["inbound_nodes"][0]]
        values[layer["name"]] = compute(layer, weights[layer["name"]], inputs)
    return values[layers[-1]["name"]].numpy()


def compute(layer: dict[str, Any], arrays: list[np.ndarray], inputs: list[Tensor]) -> Tensor:
    """One layer, as NVIDIA's patched Keras computes it."""
    config, kind, x = layer["config"], layer["class_name"], inputs[0]
    first, *rest = [torch.from_numpy(array) for array in arrays] or [torch.empty(0)]
    if kind in ("Conv2D", "DepthwiseConv2D"):
        depthwise = kind != "Conv2D"
        kernel = first.permute(2, 3, 0, 1) if depthwise else first.permute(3, 2, 0, 1)
        padding = [k // 2 for k in config["kernel_size"]] if config["padding"] == "same" else [0, 0]
        groups = x.shape[1] if depthwise else 1
        x = functional.conv2d(x, kernel, *rest, stride=config["strides"], padding=padding, groups=groups)
    elif kind == "Dense":
        x = functional.linear(x, first.T, *rest)
    elif kind == "BatchNormalization":
        beta, mean, variance = rest
        x = functional.batch_norm(x, mean, variance, first, beta, eps=config["epsilon"])
    elif kind in ("MaxPooling2D", "AveragePooling2D"):
        kernel = config["pool_size"]
        vertical, horizontal = [(k - 1) // 2 for k in kernel] if config["padding"] == "same" else (0, 0)
        x = functional.pad(x, (horizontal, horizontal, vertical, vertical))
        pool = functional.max_pool2d if kind == "MaxPooling2D" else functional.avg_pool2d
        x = pool(x, kernel, config["strides"])
    elif kind == "GlobalAveragePooling2D":
        x = x.mean((2, 3))
    elif kind == "ZeroPadding2D":
        (top, bottom), (left, right) = config["padding"]
        x = functional.pad(x, (left, right, top, bottom))
    elif kind in ("Add", "Multiply"):
        x = inputs[0] + inputs[1] if kind == "Add" else inputs[0] * inputs[1]
    elif kind == "Concatenate":
        x = torch.cat(inputs, 1)
    elif kind == "Split":
        x = x.chunk(2, 1)[1]
    elif kind == "Flatten":
        x = x.flatten(1)
    elif kind == "Reshape":
        x = x.reshape(x.shape[0], -1, 1, 1)
    elif kind == "LeakyReLU":
        x = functional.leaky_relu(x, config["alpha"])
    elif kind not in ("ReLU", "Activation", "Dropout"):
        raise AssertionError(kind)
    return ACTIVATIONS["relu" if kind == "ReLU" else config.get("activation", "linear")](x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "swish": lambda x: x * torch.sigmoid(x),
    "mish": lambda x: x * torch.tanh(functional.softplus(x)),
    "softmax": lambda x: x.softmax(1),
}
