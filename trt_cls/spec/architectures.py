"""`model_config`, the architecture families that it can name, and the options that each of them has.

What validation, the reference and `trt-cls models` need, without torch; the layers are in `trt_cls/models/families/`.
Of networks of other libraries, only the form of the name is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trt_cls.spec.fields import SIZES, checked_by_rules, enum, finite, interval, one_of, option, required

LIBRARIES = ("torchvision", "timm")
"""Libraries whose classification networks a spec can name, as in "torchvision/resnet18"."""

HUB = "hub"
"""Value of `pretrained_model_path` for the pretrained weights of torchvision or timm."""

_EXTERNAL = re.compile(rf"({'|'.join(LIBRARIES)})/\w+", re.ASCII)


def is_external(arch: str) -> bool:
    """Whether `arch` has the form of a torchvision or timm network; does not check that the library has it."""
    return _EXTERNAL.fullmatch(arch) is not None


@dataclass(frozen=True)
class Architecture:
    """One family; validation refuses shortcuts, dropout and activations that it does not have."""

    name: str
    depths: tuple[int, ...] = ()
    """Allowed `n_layers`; empty: the family has one depth and ignores the field."""
    freeze_blocks: range = range(0)
    """Allowed ids in `freeze_blocks`."""
    activations: tuple[str, ...] = ()
    """Allowed `activation_type`, the family's own first."""
    switches: tuple[str, ...] = ("use_batch_norm", "use_bias", "retain_head")
    """Flags of model_config that change the network; others have no effect."""
    has_shortcuts: bool = False
    """Whether `all_projections` changes the network."""
    has_dropout: bool = False
    has_drop_path: bool = False
    """Whether residual branches are left out of training steps."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Flags of model_config that the family sets, whatever the spec says."""

    @property
    def options(self) -> tuple[str, ...]:
        """All fields of model_config that change the network, but for depth and input size."""
        return (
            *self.switches,
            *(["all_projections"] if self.has_shortcuts else []),
            *(["dropout"] if self.has_dropout else []),
            *(["activation"] if len(self.activations) > 1 else []),
        )

    @property
    def depths_text(self) -> str:
        """The allowed `n_layers`, for a message."""
        return ", ".join(str(depth) for depth in self.depths)


POOLED = ("use_batch_norm", "use_bias", "use_pooling", "retain_head")
WITH_NORMS, WITHOUT_NORMS = {"use_batch_norm": True}, {"use_batch_norm": False, "use_bias": True}

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("resnet", (10, 18, 34, 50, 101, 152), range(5), ("relu", "swish"), POOLED, has_shortcuts=True),
        Architecture("vgg", (16, 19), range(1, 6), ("relu",), POOLED, has_dropout=True),
        Architecture("alexnet", (), range(1, 9), ("relu",), ("retain_head",), fixed=WITHOUT_NORMS),
        Architecture("googlenet", (), range(10), activations=("relu",)),
        Architecture("mobilenet_v1", (), range(14), activations=("relu",)),
        Architecture("mobilenet_v2", (), range(19), activations=("relu",), has_shortcuts=True),
        Architecture("squeezenet", (), range(9), ("relu",), ("retain_head",), has_dropout=True, fixed=WITHOUT_NORMS),
        Architecture("darknet", (19, 53), range(6), activations=("leaky_relu",)),
        Architecture("cspdarknet", (19, 53), range(6), activations=("leaky_relu", "relu", "mish")),
        Architecture("cspdarknet_tiny", (), range(6), activations=("leaky_relu", "relu", "mish")),
        *(
            Architecture(
                f"efficientnet_b{size}",
                (),
                range(9),
                ("swish", "relu"),
                ("use_bias", "retain_head"),
                has_drop_path=True,
                fixed=WITH_NORMS,
            )
            for size in range(8)
        ),
    )
}


def family_and_depth(name: str) -> tuple[str, int] | None:
    """The family and `n_layers` of a name that holds both, such as "resnet18"; None for any other."""
    match = re.fullmatch(r"([a-z_]+?)[-_ ]?(\d{2,3})", name.lower(), re.ASCII)
    family = ARCHITECTURES.get(match[1]) if match else None
    return (family.name, int(match[2])) if match and family and int(match[2]) in family.depths else None


@dataclass(frozen=True, kw_only=True)
class BatchNormConfig:
    """Batch normalization; `momentum` is the share of the running statistics that is kept (PyTorch: 1 - momentum)."""

    momentum: float = option(
        0.9, "share of the running statistics kept at each step (PyTorch: 1 - momentum)", interval(0, 1, "()")
    )
    epsilon: float = option(1e-5, "added to the variance", interval(0, 0.1, "()"))


@dataclass(frozen=True, kw_only=True)
class Activation:
    """The activation function, for families with a choice."""

    activation_type: str = required(
        "activation function; default: the family's own", one_of("relu", "swish", "mish", "leaky_relu")
    )
    activation_parameters: Mapping[str, float] = option(
        dict, "accepted for compatibility with TAO; no activation function has parameters", finite()
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    arch: str = option(
        "resnet",
        "architecture family, or a network of torchvision or timm",
        checked_by_rules("one of " + ", ".join((*ARCHITECTURES, *(f"{library}/NAME" for library in LIBRARIES)))),
    )
    n_layers: int = option(
        18,
        "depth, for families with several",
        checked_by_rules("; ".join(f"{a.name}: {a.depths_text}" for a in ARCHITECTURES.values() if a.depths)),
    )
    input_image_size: str = option(
        "3,224,224",
        "size of the network's input: channels, height, width",
        checked_by_rules(f'"C,H,W": C 1 or 3, {SIZES}, as in "3,224,224"'),
    )
    resize_interpolation_method: str = option(
        "BILINEAR", "interpolation of resizing, always with antialiasing", enum("BILINEAR", "BICUBIC")
    )
    use_batch_norm: bool = option(False, "batch normalization after each convolution")
    use_bias: bool = option(False, "bias in convolutions")
    use_pooling: bool = option(False, "pooling instead of strided convolutions")
    all_projections: bool = option(False, "a 1x1 convolution in every shortcut, for families with shortcuts")
    retain_head: bool = option(False, "the classifier of the original paper instead of average pooling and one layer")
    freeze_bn: bool = option(False, "batch normalization uses its running statistics in training")
    freeze_blocks: tuple[int, ...] = option(
        (), "ids of blocks whose convolutions are not trained", checked_by_rules("integers: the family's blocks")
    )
    dropout: float = option(
        0.0,
        f"dropout rate in the head ({', '.join(a.name for a in ARCHITECTURES.values() if a.has_dropout)})",
        interval(0, 1, "[)"),
    )
    batch_norm_config: BatchNormConfig = option(BatchNormConfig, "constants of batch normalization")
    activation: Activation | None = option(None, "activation function; default: the family's own")
    byom_model: str = option(
        "", "TAO's bring-your-own-model file; not supported: evaluate and infer take the network as an ONNX file"
    )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = (int(number) for number in self.input_image_size.split(","))
        return channels, height, width
