"""The architecture families that a spec can name, and the options that each of them has.

What validation, the reference and `trt-cls models` need, without torch; the layers are in `trt_cls/models/families/`.
Of networks of other libraries, only the form of the name is checked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("resnet", (10, 18, 34, 50, 101, 152), range(5), ("relu", "swish"), POOLED, has_shortcuts=True),
        Architecture("vgg", (16, 19), range(1, 6), ("relu",), POOLED, has_dropout=True),
        Architecture("alexnet", (), range(1, 9), ("relu",), ("retain_head",)),
        Architecture("googlenet", (), range(10), activations=("relu",)),
        Architecture("mobilenet_v1", (), range(14), activations=("relu",)),
        Architecture("mobilenet_v2", (), range(19), activations=("relu",), has_shortcuts=True),
        Architecture("squeezenet", (), range(9), ("relu",), ("retain_head",), has_dropout=True),
        Architecture("darknet", (19, 53), range(6), activations=("leaky_relu",)),
        Architecture("cspdarknet", (19, 53), range(6), activations=("leaky_relu", "relu", "mish")),
        Architecture("cspdarknet_tiny", (), range(6), activations=("leaky_relu", "relu", "mish")),
        *(
            Architecture(f"efficientnet_b{size}", (), range(9), ("swish", "relu"), ("use_bias", "retain_head"))
            for size in range(8)
        ),
    )
}


def family_and_depth(name: str) -> tuple[str, int] | None:
    """The family and `n_layers` of a name that holds both, such as "resnet18"; None for any other."""
    match = re.fullmatch(r"([a-z_]+?)[-_ ]?(\d{2,3})", name.lower(), re.ASCII)
    family = ARCHITECTURES.get(match[1]) if match else None
    return (family.name, int(match[2])) if match and family and int(match[2]) in family.depths else None
