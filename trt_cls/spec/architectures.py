"""The architecture families that a spec can name, and the options of each.

For validation and the reference, without torch: the networks themselves are in `trt_cls/models/`. Of torchvision's and
timm's networks only the form of the name is known.
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
    """One family. Validation refuses an option that the family does not have."""

    name: str
    depths: tuple[int, ...] = ()
    """Allowed `n_layers`; empty: the family has one depth and ignores the field."""
    freeze_blocks: range = range(0)
    """Allowed ids in `freeze_blocks`."""
    activations: tuple[str, ...] = ()
    """Allowed `activation_type`, the default first."""
    has_shortcuts: bool = False
    """Whether the family has `all_projections`."""
    has_dropout: bool = False

    @property
    def depths_text(self) -> str:
        """The allowed `n_layers`, for a message."""
        return ", ".join(str(depth) for depth in self.depths)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("resnet", (10, 18, 34, 50, 101, 152), range(5), activations=("relu", "swish"), has_shortcuts=True),
        Architecture("vgg", (16, 19), range(1, 6), activations=("relu",), has_dropout=True),
        Architecture("alexnet", (), range(1, 9), activations=("relu",)),
        Architecture("googlenet", (), range(10), activations=("relu",)),
        Architecture("mobilenet_v1", (), range(14), activations=("relu",)),
        Architecture("mobilenet_v2", (), range(19), activations=("relu",), has_shortcuts=True),
        Architecture("squeezenet", (), range(9), activations=("relu",), has_dropout=True),
        Architecture("darknet", (19, 53), range(6), activations=("leaky_relu",)),
        Architecture("cspdarknet", (19, 53), range(6), activations=("leaky_relu", "relu", "mish")),
        Architecture("cspdarknet_tiny", (), range(6), activations=("leaky_relu", "relu", "mish")),
        *(Architecture(f"efficientnet_b{size}", (), range(9), activations=("swish", "relu")) for size in range(8)),
    )
}
