"""Whether a Keras model of TAO's is a network of ours: compared layer by layer, as PyTorch modules.

Knows what NVIDIA's patched Keras means by its layers. Layers that compute nothing (dropout, flattening a map of one
pixel) are skipped, and padding that stands by itself belongs to the convolution that reads it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trt_cls.contract import INPUT
from trt_cls.errors import ArtefactError
from trt_cls.models.builder import ACTIVATIONS, Pair
from trt_cls.models.network import Add, Concatenate, GlobalAverage, Multiply, Network, SampleDropout, SecondHalf
from trt_cls.models.tao.hdf5 import KerasLayer, KerasModel

LEAK = 0.1
SOFTMAX = "softmax"
FUNCTIONS: Mapping[str, Callable[[], nn.Module]] = {
    **ACTIVATIONS,
    "linear": nn.Identity,
    SOFTMAX: partial(nn.Softmax, 1),
}
FUSED = ("Conv2D", "DepthwiseConv2D", "Dense")
"""Layers that may have an activation inside them."""
COMPUTES_NOTHING = (nn.Identity, nn.Dropout, SampleDropout)

MapShape = tuple[int, int, int]
"""Channels, height, width; flat values have 1×1."""


class Operation(NamedTuple):
    """What a layer computes; layers with equal operations have equal outputs."""

    module: str
    """The module and its settings, as PyTorch prints it."""
    inputs: tuple[str, ...]
    """Names of the layers of our network that it reads."""
    layer: str
    """Its own name, if it has weights."""

    def __str__(self) -> str:
        return f"{self.module} of {' and '.join(self.inputs)}"


def require_same_network(model: KerasModel, network: Network, title: str) -> None:
    """Refuses a model that computes something else than `network`, which is on the meta device.

    `title` names the network in messages.

    Raises:
        ArtefactError: names the first layer that does not fit.
    """
    shapes = _shapes(network)
    ours = _operations(network, shapes)
    layers: dict[str, str] = {}  # for each of theirs, ours with the same output
    pads: dict[str, Pair] = {}
    for layer in model.layers:
        try:
            inputs = tuple(layers[name] for name in layer.inputs) or (INPUT,)
            padding = next((pads[name] for name in layer.inputs if name in pads), (0, 0))
            for module in _modules(layer, shapes[inputs[0]], padding):
                if _computes_nothing(module, shapes[inputs[0]]):
                    continue
                if isinstance(module, nn.ZeroPad2d) and module.padding[::2] == module.padding[1::2]:
                    pads[layer.name] = (module.padding[2], module.padding[0])
                    continue
                found = _operation(layer.name, module, inputs, shapes)
                if found not in ours:
                    _refuse(model, title, f"layer {layer.name!r}", str(found), _expected(found, ours))
                inputs = (ours[found],)
            layers[layer.name] = inputs[0]
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise ArtefactError(
                f"{model.path}: layer {layer.name!r} ({layer.kind}) can't be understood ({why}); "
                "only the networks of TAO's classification can be imported"
            ) from error
    if layers[model.output] != SOFTMAX or model.output in pads:
        _refuse(model, title, "its output", layers[model.output], f"Softmax of {network.steps[-1].name}")


def activation_of(layer: KerasLayer) -> str:
    """The function of an activation layer, or the one inside a convolution, by the spec's name."""
    config = layer.config
    if layer.kind == "ReLU":
        plain = config["max_value"] is None and not config.get("negative_slope") and not config.get("threshold")
        return "relu" if plain else "clipped relu"
    if layer.kind == "LeakyReLU":
        return "leaky_relu" if abs(config["alpha"] - LEAK) < 1e-6 else f"leaky_relu {config['alpha']}"
    return str(config["activation"])


def _expected(found: Operation, ours: Iterable[Operation]) -> str:
    """The operation of our layer of the same name, or those that read the same layers."""
    near = [str(own) for own in ours if (own.layer == found.layer if found.layer else {*own.inputs} & {*found.inputs})]
    return " or ".join(near) or "no such layer"


def _refuse(model: KerasModel, title: str, what: str, found: str, expected: str) -> None:
    raise ArtefactError(
        f"{model.path} looks like {title}, but {what} does not fit: found {found}, expected {expected}; "
        "only the networks of TAO's classification can be imported"
    )


def _modules(layer: KerasLayer, shape: MapShape, padding: Pair) -> Sequence[nn.Module]:
    """A Keras layer as modules: its own, and an activation inside it. It reads `shape`, with zeros as in `padding`."""
    config = layer.config
    if config.get("data_format", "channels_first") != "channels_first":
        raise ValueError(f"data_format {config['data_format']!r}; expected 'channels_first'")
    if padding != (0, 0) and layer.kind not in FUSED:
        raise ValueError("it reads a padded map, and is no convolution")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # layers without weights are refused, as all that do not fit
        module = _module(layer, shape, padding)
    function = activation_of(layer) if layer.kind in FUSED else "linear"
    return module, _function(function)


def _module(layer: KerasLayer, shape: MapShape, padding: Pair) -> nn.Module:
    config = layer.config
    match layer.kind:
        case "InputLayer" | "Dropout":
            return nn.Identity()
        case "Conv2D" | "DepthwiseConv2D":
            return _conv(layer, shape[0], padding)
        case "BatchNormalization":
            if (config["axis"], config["center"], config["scale"]) != (1, True, True):
                raise ValueError("not over the channels, or without gamma or beta")
            return nn.BatchNorm2d(shape[0], eps=float(config["epsilon"]), momentum=1 - float(config["momentum"]))
        case "MaxPooling2D" | "AveragePooling2D":
            pool = nn.MaxPool2d if layer.kind == "MaxPooling2D" else nn.AvgPool2d
            kernel = tuple(config["pool_size"])
            return pool(kernel, tuple(config["strides"]), _padding(config, [(k - 1) // 2 for k in kernel]))
        case "GlobalAveragePooling2D":
            return GlobalAverage()
        case "Dense":
            return nn.Linear(shape[0], config["units"], bias=config["use_bias"])
        case "Activation" | "ReLU" | "LeakyReLU":
            return _function(activation_of(layer))
        case "ZeroPadding2D":
            vertical, horizontal = config["padding"]
            return nn.ZeroPad2d((*horizontal, *vertical))
        case "Add":
            return Add()
        case "Multiply":
            return Multiply()
        case "Concatenate" if config["axis"] == 1:
            return Concatenate()
        case "Split" if (config["groups"], config["group_id"]) == (2, 1):
            return SecondHalf()
        case "Flatten":
            return nn.Flatten()
        case "Reshape" if config["target_shape"] == [-1, 1, 1] and shape[1:] == (1, 1):
            return nn.Identity()
    raise ValueError("no network of TAO's has such a layer")


def _conv(layer: KerasLayer, channels: int, padding: Pair) -> nn.Module:
    config = layer.config
    kernel, stride = config["kernel_size"], config["strides"]
    depthwise = layer.kind == "DepthwiseConv2D"
    if depthwise and (config["depth_multiplier"] != 1 or (config["padding"] == "same" and stride != [1, 1])):
        raise ValueError(
            "a depth multiplier, or TensorFlow's padding 'same' with a stride"
        )  # TAO's networks avoid both
    own = _padding(config, [k // 2 for k in kernel])
    if (0, 0) not in (own, padding):
        raise ValueError("it pads a map that is padded already")
    return nn.Conv2d(
        channels,
        channels if depthwise else config["filters"],
        kernel,
        stride,
        padding if own == (0, 0) else own,
        config["dilation_rate"],
        groups=channels if depthwise else 1,
        bias=config["use_bias"],
    )


def _padding(config: Mapping[str, Any], same: Sequence[int]) -> Pair:
    """NVIDIA pads "same" by as many zeros on every side, whatever the stride."""
    if config["padding"] not in ("valid", "same"):
        raise ValueError(f"padding {config['padding']!r}")
    vertical, horizontal = same
    return (vertical, horizontal) if config["padding"] == "same" else (0, 0)


def _function(name: str) -> nn.Module:
    if name not in FUNCTIONS:
        raise ValueError(f"no network of TAO's has the function {name}")
    return FUNCTIONS[name]()


def _shapes(network: Network) -> dict[str, MapShape]:
    """The shape of each layer's output."""
    shapes = {INPUT: network.input_shape}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        channels, height, width = (*output.shape[1:], 1, 1)[:3]
        shapes[name] = (channels, height, width)

    hooks = [module.register_forward_hook(partial(note, name)) for name, module in network.named_children()]
    network.eval()(torch.zeros(1, *network.input_shape, device="meta"))
    for hook in hooks:
        hook.remove()
    shapes[SOFTMAX] = shapes[network.steps[-1].name]
    return shapes


def _operations(network: Network, shapes: Mapping[str, MapShape]) -> dict[Operation, str]:
    """The operations of a network, each with the layer that does it, and the softmax over the logits."""
    layers = {INPUT: INPUT}
    names: dict[Operation, str] = {}
    for step in network.steps:
        module, inputs = getattr(network, step.name), tuple(layers[name] for name in step.inputs)
        if _computes_nothing(module, shapes[inputs[0]]):
            layers[step.name] = inputs[0]
        else:
            layers[step.name] = names.setdefault(_operation(step.name, module, inputs, shapes), step.name)
    names[_operation("", nn.Softmax(1), (layers[network.steps[-1].name],), shapes)] = SOFTMAX
    return names


def _computes_nothing(module: nn.Module, shape: MapShape) -> bool:
    return isinstance(module, COMPUTES_NOTHING) or (isinstance(module, nn.Flatten) and shape[1:] == (1, 1))


def _operation(name: str, module: nn.Module, inputs: tuple[str, ...], shapes: Mapping[str, MapShape]) -> Operation:
    if isinstance(module, nn.AvgPool2d) and module.padding == (0, 0) and isinstance(module.kernel_size, tuple):
        _, height, width = shapes[inputs[0]]
        if module.kernel_size[0] >= height and module.kernel_size[1] >= width:
            module = GlobalAverage()
    if isinstance(module, (Add, Multiply)):
        inputs = tuple(sorted(inputs))
    has_weights = isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))
    return Operation(str(module), inputs, name if has_weights else "")
