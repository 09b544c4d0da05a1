"""Whether a Keras model of TAO's is a network of ours: both written as operations, layer by layer.

It knows what NVIDIA's patched Keras means by its layers. Dropout leaves no trace.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from trt_cls.errors import ArtefactError
from trt_cls.models.network import INPUT, Add, Concatenate, GlobalAverage, Multiply, Network, SampleDropout, SecondHalf
from trt_cls.models.tao.hdf5 import KerasLayer, KerasModel
from trt_cls.models.tao.operations import NONE, Operations, Pads

LEAK = 0.1
LINEAR = "linear"
FUSED = ("Conv2D", "DepthwiseConv2D", "Dense")
"""Layers that may have an activation inside them."""


def require_same_network(model: KerasModel, network: Network, title: str) -> None:
    """Refuses a model that computes something else than `network`, whose name for messages is `title`.

    Raises:
        ArtefactError: names the first layer with weights that does not fit.
    """
    operations = Operations()
    theirs, answer = _trace_keras(model, operations)
    ours = _trace_network(network, operations)
    for layer in model.layers:
        if layer.tensors and theirs[layer.name] != ours.get(layer.name):
            wanted = operations.tell(ours[layer.name]) if layer.name in ours else "no such layer"
            _refuse(model, title, f"layer {layer.name!r}", operations.tell(theirs[layer.name]), wanted)
    wanted_answer = operations.same_shape("softmax", ours[network.steps[-1].name])
    if answer != wanted_answer:
        _refuse(model, title, "its output", operations.tell(answer), operations.tell(wanted_answer))


def _refuse(model: KerasModel, title: str, what: str, found: str, wanted: str) -> None:
    raise ArtefactError(
        f"{model.path} looks like {title}, but {what} does not fit: found {found}, expected {wanted}; "
        "only the networks of TAO's classification can be imported"
    )


def _trace_keras(model: KerasModel, operations: Operations) -> tuple[dict[str, int], int]:
    """The operation of each layer of a Keras model, without the activation inside it, and that of the output."""
    own: dict[str, int] = {}
    outputs: dict[str, int] = {}
    for layer in model.layers:
        try:
            own[layer.name] = _keras_operation(operations, layer, [outputs[name] for name in layer.inputs])
            fused = layer.config["activation"] if layer.kind in FUSED else LINEAR
            outputs[layer.name] = _activated(operations, own[layer.name], fused)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ArtefactError(
                f"{model.path}: layer {layer.name!r} ({layer.kind}) can't be understood ({error}); "
                "only the networks of TAO's classification can be imported"
            ) from error
    return own, outputs[model.output]


def _keras_operation(operations: Operations, layer: KerasLayer, inputs: list[int]) -> int:
    config = layer.config
    if config.get("data_format", "channels_first") != "channels_first":
        raise ValueError(f"data_format {config['data_format']!r}; expected 'channels_first'")
    if layer.kind == "InputLayer":
        _, channels, height, width = config["batch_input_shape"]
        return operations.add(INPUT, (channels, height, width))
    x = inputs[0]
    match layer.kind:
        case "Conv2D" | "DepthwiseConv2D":
            return _keras_conv(operations, layer, x)
        case "BatchNormalization":
            return _keras_batch_norm(operations, layer, x)
        case "MaxPooling2D" | "AveragePooling2D":
            kind = "max pooling" if layer.kind == "MaxPooling2D" else "average pooling"
            kernel = config["pool_size"]
            return operations.pool(kind, x, kernel, config["strides"], _pads(config, [(k - 1) // 2 for k in kernel]))
        case "GlobalAveragePooling2D":
            return operations.mean(x)
        case "Dense":
            return operations.dense(x, layer.name, config["units"], bias=config["use_bias"])
        case "Activation" | "ReLU" | "LeakyReLU":
            return _activated(operations, x, activation_of(layer))
        case "ZeroPadding2D":
            (top, bottom), (left, right) = config["padding"]
            return operations.pad(x, (top, bottom, left, right))
        case "Add" | "Multiply":
            return operations.combine("sum" if layer.kind == "Add" else "product", *inputs)
        case "Concatenate" if config["axis"] == 1:
            return operations.concatenate(*inputs)
        case "Split" if (config["groups"], config["group_id"]) == (2, 1):
            return operations.second_half(x)
        case "Flatten":
            return operations.flatten(x)
        case "Reshape" if config["target_shape"] == [-1, 1, 1] and operations[x].shape[1:] == (1, 1):
            return x
        case "Dropout":
            return x
    raise ValueError("no network of TAO's has such a layer")


def _keras_conv(operations: Operations, layer: KerasLayer, x: int) -> int:
    config = layer.config
    kernel, stride = config["kernel_size"], config["strides"]
    depthwise = layer.kind == "DepthwiseConv2D"
    if config["dilation_rate"] != [1, 1] or (depthwise and config["depth_multiplier"] != 1):
        raise ValueError("dilation or depth multiplier other than 1")
    if depthwise and config["padding"] == "same" and stride != [1, 1]:
        raise ValueError("padding 'same' with a stride")  # TensorFlow's own, which TAO's networks avoid
    filters = 0 if depthwise else config["filters"]
    pads = _pads(config, [k // 2 for k in kernel])
    return operations.conv(x, layer.name, filters, kernel, stride, pads, bias=config["use_bias"])


def _keras_batch_norm(operations: Operations, layer: KerasLayer, x: int) -> int:
    config = layer.config
    if (config["axis"], config["center"], config["scale"]) != (1, True, True):
        raise ValueError("not over the channels, or without gamma or beta")
    return operations.same_shape(
        "batch normalisation", x, name=layer.name, settings=(("epsilon", float(config["epsilon"])),)
    )


def activation_of(layer: KerasLayer) -> str:
    """The function of an activation layer, or the one inside a convolution, by the spec's name."""
    config = layer.config
    if layer.kind == "ReLU":
        plain = config["max_value"] is None and not config.get("negative_slope") and not config.get("threshold")
        return "relu" if plain else "clipped relu"
    if layer.kind == "LeakyReLU":
        return "leaky_relu" if abs(config["alpha"] - LEAK) < 1e-6 else f"leaky_relu {config['alpha']}"
    return str(config["activation"])


def _activated(operations: Operations, x: int, function: str) -> int:
    return x if function == LINEAR else operations.same_shape(function, x)


def _pads(config: Any, same: list[int]) -> Pads:
    """NVIDIA pads "same" by as many zeros on every side, whatever the stride."""
    if config["padding"] == "valid":
        return NONE
    if config["padding"] != "same":
        raise ValueError(f"padding {config['padding']!r}")
    vertical, horizontal = same
    return vertical, vertical, horizontal, horizontal


MODULE_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "swish",
    nn.Mish: "mish",
    nn.Sigmoid: "sigmoid",
}


def _trace_network(network: Network, operations: Operations) -> dict[str, int]:
    """The operation of each layer of a network."""
    done = {INPUT: operations.add(INPUT, network.input_shape)}
    for step in network.steps:
        module = getattr(network, step.name)
        done[step.name] = _module_operation(operations, step.name, module, [done[name] for name in step.inputs])
    return done


def _module_operation(operations: Operations, name: str, module: nn.Module, inputs: list[int]) -> int:
    x = inputs[0]
    match module:
        case nn.Conv2d(kernel_size=kernel, stride=stride, padding=(vertical, horizontal)):
            filters = module.out_channels if module.groups == 1 else 0
            pads = (vertical, vertical, horizontal, horizontal)
            return operations.conv(x, name, filters, kernel, stride, pads, bias=module.bias is not None)
        case nn.BatchNorm2d():
            return operations.same_shape("batch normalisation", x, name=name, settings=(("epsilon", module.eps),))
        case nn.MaxPool2d() | nn.AvgPool2d():
            kind = "max pooling" if isinstance(module, nn.MaxPool2d) else "average pooling"
            vertical, horizontal = _pair(module.padding)
            pads = (vertical, vertical, horizontal, horizontal)
            return operations.pool(kind, x, _pair(module.kernel_size), _pair(module.stride), pads)
        case GlobalAverage():
            return operations.mean(x)
        case nn.Linear():
            return operations.dense(x, name, module.out_features, bias=module.bias is not None)
        case nn.ZeroPad2d(padding=(left, right, top, bottom)):
            return operations.pad(x, (top, bottom, left, right))
        case Add() | Multiply():
            return operations.combine("sum" if isinstance(module, Add) else "product", *inputs)
        case Concatenate():
            return operations.concatenate(*inputs)
        case SecondHalf():
            return operations.second_half(x)
        case nn.Flatten():
            return operations.flatten(x)
        case nn.Dropout() | SampleDropout():
            return x
    return operations.same_shape(MODULE_ACTIVATIONS[type(module)], x)


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
