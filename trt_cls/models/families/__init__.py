"""The table of families and how one is built from the spec's model_config; one module per family and its variants.

Does not know: checkpoints, and networks of other libraries. Begin with `FAMILIES`, the table; docs/architecture.md says
how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trt_cls.errors import RequestError, did_you_mean
from trt_cls.models.builder import Builder, MapTooSmallError, Value
from trt_cls.models.families import alexnet, darknet, efficientnet, googlenet, mobilenet, resnet, squeezenet, vgg
from trt_cls.models.network import Network, glorot_uniform, scaled_by_fan_out
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import ModelConfig


@dataclass(frozen=True)
class Family:
    """How one family is built."""

    network: Callable[[Builder, int], Value]
    """Adds all layers to a builder, for a number of classes, and returns the logits."""
    initialize: Callable[[Tensor], None] = glorot_uniform
    """Initializes the weights of a convolution."""


FAMILIES = {
    "resnet": Family(resnet.network),
    "vgg": Family(vgg.network),
    "alexnet": Family(alexnet.network),
    "googlenet": Family(googlenet.network),
    "mobilenet_v1": Family(mobilenet.network_v1),
    "mobilenet_v2": Family(mobilenet.network_v2),
    "squeezenet": Family(squeezenet.network),
    "darknet": Family(darknet.network),
    "cspdarknet": Family(darknet.csp_network),
    "cspdarknet_tiny": Family(darknet.csp_tiny_network),
    **{arch: Family(efficientnet.network, scaled_by_fan_out) for arch in efficientnet.SIZES},
}


def build(
    config: ModelConfig, num_classes: int, widths: Mapping[str, int] | None = None, *, tao_pooling: bool = False
) -> Network:
    """See `trt_cls.models.build`."""
    _check(config)
    try:
        network = _build(config, num_classes, widths or {}, tao_pooling)
    except MapTooSmallError as error:
        raise RequestError(
            f'input_image_size "{config.input_image_size}": {error} of {config.arch} has no pixels left to pool; '
            f"expected sides of at least {_smallest_side(config)}; enlarge it, or choose another arch"
        ) from error
    if network.num_classes != num_classes:
        raise RequestError(
            f"{network.head} is {network.num_classes} wide; expected one output for each of {num_classes} classes"
        )
    return network


def _build(config: ModelConfig, num_classes: int, widths: Mapping[str, int], tao_pooling: bool) -> Network:
    family, fixed = FAMILIES[config.arch], ARCHITECTURES[config.arch].fixed
    net = Builder(replace(config, **fixed), widths, tao_pooling=tao_pooling, initialize=family.initialize)
    family.network(net, num_classes)
    return net.network()


def _smallest_side(config: ModelConfig) -> int:
    side = 16
    with torch.device("meta"):
        while True:
            try:
                _build(replace(config, input_image_size=f"3,{side},{side}"), 2, {}, False)
            except MapTooSmallError:
                side += 1
            else:
                return side


def _check(config: ModelConfig) -> None:
    known = ARCHITECTURES.get(config.arch)
    if known is None or config.arch not in FAMILIES:
        names = [name for name in ARCHITECTURES if name in FAMILIES]
        raise RequestError(
            f'arch "{config.arch}": expected one of {", ".join(names)}{did_you_mean(config.arch, names)}'
        )
    if known.depths and config.n_layers not in known.depths:
        depths = ", ".join(map(str, known.depths))
        raise RequestError(
            f"n_layers {config.n_layers}: expected one of {depths} for {config.arch}; set model_config.n_layers"
        )
    if config.activation and config.activation.activation_type not in known.activations:
        raise RequestError(
            f'activation_type "{config.activation.activation_type}": expected one of {", ".join(known.activations)} '
            f"for {config.arch}; set model_config.activation.activation_type or leave activation out"
        )
