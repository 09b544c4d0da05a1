"""A first spec for a folder of images, with comments: the choices depend on number, size and color of the images.

Does not know: how images are read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined

from trt_cls.errors import RequestError
from trt_cls.spec.architectures import ARCHITECTURES, family_and_depth, is_external
from trt_cls.spec.rules import unknown_architecture

LARGEST_INPUT, SMALLEST, STEP = 224, 32, 16
"""Sides of the network's input, and the step between them: the map of a ResNet is 1/16 of its input."""
ENLARGED = 64
"""Smaller pictures are enlarged by half, to this side at most."""
PASSES = {"cpu": 64_000, "gpu": 240_000, "hub": 30_000}
"""Images that a training sees in all: 8,000 of 32×32 pixels take about 8 minutes on two processor cores."""
HUB_DEFAULT = "torchvision/resnet18"


@dataclass(frozen=True)
class Pictures:
    """What is known of a folder of images; paths as a spec names them."""

    train: str
    val: str
    """Empty: a part of `train` is held out."""
    test: str
    """Empty: the images of validation."""
    classes: int
    images: int
    """To train on, those that are held out included."""
    width: int
    height: int
    """In the middle of all images, each."""
    color: bool
    remarks: tuple[str, ...]
    """Lines for display."""

    @property
    def side(self) -> int:
        """Of the square that the network sees."""
        shorter = min(self.width, self.height)
        wanted = max(shorter, min(shorter * 3 // 2, ENLARGED))
        return min(LARGEST_INPUT, max(SMALLEST, -(-wanted // STEP) * STEP))

    @property
    def small(self) -> bool:
        """Whether pictures are shifted, and not cropped: they have little around what they show."""
        return self.side <= ENLARGED or max(self.width, self.height) > 1.5 * min(self.width, self.height)


def architecture(asked: str | None, pictures: Pictures, *, hub: bool) -> tuple[str, int]:
    """Family and depth; depth 0 where the family has one. `hub`: whether the weights of `HUB_DEFAULT` are here.

    Raises:
        RequestError: there is no such architecture.
    """
    if asked is None and hub and pictures.color and pictures.side > ENLARGED:
        asked = HUB_DEFAULT
    name, depth = family_and_depth(asked or "resnet") or (asked or "resnet", 0)
    if is_external(name):
        return name, 0
    if name not in ARCHITECTURES:
        raise RequestError(f"--arch {unknown_architecture(name)}")
    depths = ARCHITECTURES[name].depths
    usual = 10 if pictures.side <= ENLARGED else 18
    return name, depth or (usual if usual in depths else depths[0] if depths else 0)


def starter_text(pictures: Pictures, arch: str, depth: int, results: str, *, hub: bool, gpu: bool) -> str:
    """The spec; `results` is the folder that the training is expected to write, `hub` takes pretrained weights."""
    images = pictures.images if pictures.val else pictures.images * 4 // 5
    batch = 64 if images >= 1024 else 32 if images >= 256 else 8
    own = ARCHITECTURES.get(arch)
    normalized = own is None or own.fixed.get("use_batch_norm", True)  # without, 0.05 diverges
    rate = 0.05 if normalized and not hub else 0.01
    room = Environment(
        loader=PackageLoader("trt_cls", "spec"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    room.filters["text"] = partial(json.dumps, ensure_ascii=False)
    return room.get_template("starter.txt.j2").render(
        pictures=pictures,
        arch=arch,
        depth=depth,
        external=is_external(arch),
        switch=own is not None and "use_batch_norm" in own.switches,
        hub=hub,
        gpu=gpu,
        images=images,
        batch=batch,
        epochs=min(100, max(8, round(PASSES["hub" if hub else "gpu" if gpu else "cpu"] / images))),
        rate=rate * batch / 64,
        crops=str(not pictures.small).lower(),
        results=results,
    )
