"""From a Keras model of TAO's to a network of ours: derives the model_config from the layers, and loads the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trt_cls.errors import ArtefactError, RequestError, TrtClsError
from trt_cls.models.checkpoint import load_checkpoint, require_shapes, widths
from trt_cls.models.families import build
from trt_cls.models.network import Network
from trt_cls.models.tao.comparison import activation_of, require_same_network
from trt_cls.models.tao.hdf5 import KerasLayer, KerasModel, read_keras_model
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import Activation, BatchNormConfig, ModelConfig

MARKS = (
    ("squeezenet", None, "fire2_squeeze_conv"),
    ("googlenet", None, "inception_3a_1x1"),
    ("mobilenet_v1", None, "conv_dw_1"),
    ("mobilenet_v2", None, "expanded_conv_depthwise"),
    ("vgg", 19, "block_5d_conv_1"),
    ("vgg", 16, "block_5c_conv_1"),
    ("resnet", 152, "block_3aj_conv_1"),
    ("resnet", 101, "block_3w_conv_1"),
    ("resnet", 50, "block_3f_conv_3"),
    ("resnet", 34, "block_3f_conv_1"),
    ("resnet", 18, "block_1b_conv_1"),
    ("resnet", 10, "block_1a_conv_shortcut"),
    ("cspdarknet", 53, "b1_final_trans"),
    ("cspdarknet", 19, "b5_final_trans"),
    ("cspdarknet_tiny", None, "conv_2_conv_0"),
    ("darknet", 53, "b5_conv4_2"),
    ("darknet", 19, "b5_conv5"),
    ("efficientnet_b7", None, "block6m_dwconv"),
    ("efficientnet_b6", None, "block6k_dwconv"),
    ("efficientnet_b5", None, "block6i_dwconv"),
    ("efficientnet_b4", None, "block6h_dwconv"),
    ("efficientnet_b3", None, "block6f_dwconv"),
    ("efficientnet_b1", None, "block6e_dwconv"),
    ("efficientnet_b0", None, "stem_conv"),
    ("alexnet", None, "conv5"),
)
"""Family, depth, and a layer name: the first one that a model has identifies it."""
B1_TOP = 1280
"""Filters of top_conv in EfficientNet-B1, which has the same layers as B2."""
PLAIN_HEAD = ("avg_pool", "flatten", "predictions")
PROJECTIONS = ("_conv_shortcut", "_projected_inputs")
ACTIVATION_LAYERS = ("Activation", "ReLU", "LeakyReLU")
WEIGHTED = ("Conv2D", "DepthwiseConv2D", "Dense")
LARGEST_TAO_SIDE = 4096


@dataclass(frozen=True)
class Imported:
    """A network in eval mode, with a TAO model's weights, and the configuration that rebuilds it."""

    config: ModelConfig
    module: Network
    pruned: bool


def import_network(path: Path) -> Imported:
    """The network of a TAO `.hdf5` file, pruned, frozen and compiled ones included.

    A ResNet with use_pooling keeps TAO's final pooling, with which it was trained; a new training that starts from the
    same weights averages the entire map.

    Raises:
        ArtefactError: the file can't be read, or its model is not one of TAO's classification networks.
        MissingDependency: h5py is not installed.
    """
    model = read_keras_model(path)
    tensors = tensors_of(model)
    try:
        config, classes = _config(model)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"{path}: no model_config fits its layers ({error}); expected a model that TAO's train or prune wrote"
        ) from error
    config, module = _fitting(model, config, classes, tensors)
    require_shapes(path, tensors, _weights(module), "its layers describe")
    module.to_empty(device="cpu").load_state_dict(tensors, strict=False)  # all but the counters of batches, unused here
    for name, buffer in module.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    return Imported(_with_frozen_blocks(config, model, classes), module.eval(), _is_pruned(config, classes, tensors))


def tensors_of(model: KerasModel) -> dict[str, Tensor]:
    """All weights of a model, under our names."""
    return {
        f"{layer.name}.{name}": torch.from_numpy(np.ascontiguousarray(array))
        for layer in model.layers
        for name, array in layer.tensors.items()
    }


def require_same_answers(checkpoint: Path, module: Network) -> None:
    """Loads `checkpoint` and compares its logits for random images with those of `module`, from which it was written.

    Raises:
        ArtefactError: the logits are not finite.
        TrtClsError: they differ.
    """
    images = torch.empty(2, *module.input_shape).uniform_(-128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted, found = module(images), load_checkpoint(checkpoint).module(images)
    if not wanted.isfinite().all():
        raise ArtefactError(f"{checkpoint.name}: the network gives logits that are not finite; its weights are damaged")
    if not torch.allclose(found, wanted, rtol=1e-4, atol=1e-5):
        difference = (found - wanted).abs().max().item()
        raise TrtClsError(f"{checkpoint.name}: its logits differ from the imported network's by {difference:.3g}")


def _config(model: KerasModel) -> tuple[ModelConfig, int]:
    """The configuration, and the number of classes."""
    layers = {layer.name: layer for layer in model.layers}
    arch, depth = _architecture(model, layers)
    kinds = [layer.kind for layer in model.layers]
    first_conv = next(layer for layer in model.layers if layer.kind == "Conv2D")
    head = [layer for layer in model.layers if layer.kind in ("Conv2D", "Dense")][-1]
    norms = [layer for layer in model.layers if layer.kind == "BatchNormalization"]
    projections = sum(layer.name.endswith(PROJECTIONS) for layer in model.layers)
    dropouts = [layer.config["rate"] for layer in model.layers if layer.kind == "Dropout"]
    config = ModelConfig(
        arch=arch,
        n_layers=depth or ModelConfig().n_layers,
        input_image_size=_input_size(model),
        use_batch_norm=bool(norms),
        use_bias=bool(first_conv.config["use_bias"]),
        use_pooling=arch in ("resnet", "vgg") and "MaxPooling2D" in kinds,
        all_projections=ARCHITECTURES[arch].has_shortcuts and projections == kinds.count("Add"),
        retain_head=tuple(layers)[-3:] != PLAIN_HEAD,
        freeze_bn=any(layer.call.get("training") is False for layer in norms),
        dropout=float(dropouts[0]) if dropouts and ARCHITECTURES[arch].has_dropout else 0.0,
        batch_norm_config=_batch_norm_config(norms),
        activation=_activation(model, arch),
    )
    return config, int(head.config["filters" if head.kind == "Conv2D" else "units"])


def _architecture(model: KerasModel, layers: Mapping[str, KerasLayer]) -> tuple[str, int | None]:
    for arch, depth, mark in MARKS:
        if mark in layers:
            second = arch == "efficientnet_b1" and (
                model.name.endswith("b2") or layers["top_conv"].config["filters"] > B1_TOP
            )
            return ("efficientnet_b2" if second else arch), depth
    raise ValueError(f"its {len(layers)} layers are of no known family")


def _input_size(model: KerasModel) -> str:
    shapes = [layer.config["batch_input_shape"] for layer in model.layers if layer.kind == "InputLayer"]
    if len(shapes) != 1 or len(shapes[0]) != 4 or not all(type(side) is int for side in shapes[0][1:]):
        raise ValueError(f"inputs of shape {shapes}; expected one, of [null, channels, height, width]")
    channels, *sides = shapes[0][1:]
    if channels not in (1, 3) or not all(0 < side <= LARGEST_TAO_SIDE for side in sides):
        raise ValueError(f"an input of {shapes[0][1:]}; expected 1 or 3 channels, sides up to {LARGEST_TAO_SIDE}")
    return ",".join(map(str, shapes[0][1:]))


def _batch_norm_config(norms: list[KerasLayer]) -> BatchNormConfig:
    if not norms:
        return BatchNormConfig()
    return BatchNormConfig(momentum=float(norms[0].config["momentum"]), epsilon=float(norms[0].config["epsilon"]))


def _activation(model: KerasModel, arch: str) -> Activation | None:
    """The first activation function, if it is not the family's default."""
    functions = (
        activation_of(layer) for layer in model.layers if layer.kind in ACTIVATION_LAYERS or layer.kind == "Conv2D"
    )
    function = next(name for name in functions if name != "linear")
    # If the family does not have it, the comparison refuses the layer by name.
    return Activation(activation_type=function) if function in ARCHITECTURES[arch].activations[1:] else None


def _fitting(
    model: KerasModel, config: ModelConfig, classes: int, tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, Network]:
    """The network on the meta device; with the other head if that of `config` does not fit.

    MobileNet's two heads have the same layers, and differ in the pooling window.
    """
    try:
        return config, _compared(model, config, classes, tensors)
    except ArtefactError:
        other = replace(config, retain_head=not config.retain_head)
        with suppress(ArtefactError):
            return other, _compared(model, other, classes, tensors)
        raise


def _compared(model: KerasModel, config: ModelConfig, classes: int, tensors: Mapping[str, Tensor]) -> Network:
    depth = f" {config.n_layers}" if ARCHITECTURES[config.arch].depths else ""
    title = f"{config.arch}{depth} for {config.input_image_size}"
    try:
        with torch.device("meta"):
            module = build(config, classes, widths(tensors), tao_pooling=True)
    except (RequestError, RuntimeError, ValueError) as error:
        raise ArtefactError(
            f"{model.path} looks like {title}, which can't be built with its layers' settings: {error}"
        ) from error
    require_same_network(model, module, title)
    return module


def _weights(module: Network) -> dict[str, Tensor]:
    """The state dict without the counters of batches, which Keras does not have."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.dim()}


def _is_pruned(config: ModelConfig, classes: int, tensors: Mapping[str, Tensor]) -> bool:
    with torch.device("meta"):
        unpruned = build(config, classes)
    return any(tensor.shape != tensors[name].shape for name, tensor in _weights(unpruned).items())


def _with_frozen_blocks(config: ModelConfig, model: KerasModel, classes: int) -> ModelConfig:
    """`config` with freeze_blocks: the blocks whose convolutions are all marked as not trainable."""
    frozen = {layer.name for layer in model.layers if layer.kind in WEIGHTED and layer.config.get("trainable") is False}
    if not frozen:
        return config
    blocks = []
    for block in ARCHITECTURES[config.arch].freeze_blocks:
        with torch.device("meta"):
            module = build(replace(config, freeze_blocks=(block,)), classes)
        members = {name.split(".")[0] for name, weight in module.named_parameters() if not weight.requires_grad}
        if members and members <= frozen:
            blocks.append(block)
    return replace(config, freeze_blocks=tuple(blocks))
