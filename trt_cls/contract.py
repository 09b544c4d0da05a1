"""The model contract: what a network expects and what its answers mean, carried inside every artefact.

It holds numbers, not mode names, so that a model imported from elsewhere keeps the pixels that it was trained on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

from trt_cls.spec.architectures import ModelConfig
from trt_cls.version import PRODUCER

METADATA_KEY = "trt_cls.contract"
"""Where safetensors metadata and ONNX metadata_props keep the JSON."""
FORMAT = 1
LATER_FORMAT = 2
"""Of a contract with one of LATER_FIELDS: versions that do not know them refuse the file."""
LATER_FIELDS = {"temperature", "task", "thresholds", "conformal", "reject"}
COLDEST, HOTTEST = 0.05, 20.0
"""Of temperatures."""
INPUT, OUTPUT = "input_1", "predictions"
"""Names of the input and the output in every ONNX file and engine."""

UNDECIDED = 0.5
"""Threshold of a label that nothing was measured for."""

Precision = Literal["fp32", "fp16", "int8", "fp8"]
Task = Literal["single", "multi"]


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the network's input: resize, crop, channel order, then `(pixel / divisor - mean) / std`.

    `mean` and `std` are in the order of the network's channels; float32, one operation after the other.
    """

    channels: int
    height: int
    width: int
    crop: Literal["center", "none"]
    """"center": cover size + 32 keeping the aspect, then cut out the middle; "none": stretch."""
    filter: Literal["bilinear", "bicubic"]
    channel_order: Literal["rgb", "bgr", "gray"]
    divisor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    embedded: bool = False
    """Whether the graph does what follows resize and crop: it then takes uint8 pixels [H,W,C] in RGB order."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width; where the rest is `embedded`, height, width, channels."""
        if self.embedded:
            return self.height, self.width, self.channels
        return self.channels, self.height, self.width

    @property
    def input_type(self) -> Literal["float32", "uint8"]:
        """Of the network's input."""
        return "uint8" if self.embedded else "float32"


@dataclass(frozen=True)
class Conformal:
    """Which classes an image's set holds: those whose score is not above `quantile`."""

    coverage: float
    """Share of images whose set holds the true class, on average over samples of validation images."""
    quantile: float
    score: Literal["lac"] = "lac"
    """"lac": 1 - probability of the class (Sadinle, Lei & Wasserman 2019)."""


@dataclass(frozen=True)
class Reject:
    """Which images are unknown: those whose likeliest class has a probability below `threshold`."""

    rate: float
    """Share of images, of the kind that was validated on, that are below it at most, on average."""
    threshold: float


@dataclass(frozen=True)
class Contract:
    """One network's contract."""

    model: ModelConfig
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    """Class names by output index."""
    precision: Precision = "fp32"
    producer: str = PRODUCER
    eight_bits: float | None = None
    """Share of the multiply-adds that are computed in 8 bits, 0 to 1; None: not known."""
    temperature: float | None = None
    """What the logits of the file were divided by, inside it, so that its probabilities are calibrated."""
    task: Task = "single"
    """"single": one class an image, by a softmax; "multi": any number, each by a sigmoid and its threshold."""
    thresholds: tuple[float, ...] | None = None
    """With task "multi": an image has the labels whose probability is at least theirs."""
    conformal: Conformal | None = None
    reject: Reject | None = None

    def to_json(self) -> str:
        """The contract as one JSON object; `artefacts.contracts` reads it back."""
        # fields that say nothing are left out, for versions that do not know them
        content = {name: value for name, value in asdict(self).items() if value not in (None, "single")}
        version = LATER_FORMAT if LATER_FIELDS & content.keys() else FORMAT
        return json.dumps({"format": version, **content}, ensure_ascii=False)

    def differences(self, other: Contract) -> list[str]:
        """What differs in meaning, as "name: own value ≠ other value".

        Precision, producer, temperature, thresholds, `conformal`, `reject` and `embedded` are ignored.
        """
        found = []
        for name, own, theirs in (
            ("task", self.task, other.task),
            ("classes", list(self.classes), list(other.classes)),
            *(
                (f"preprocessing.{f.name}", getattr(self.preprocessing, f.name), getattr(other.preprocessing, f.name))
                for f in fields(Preprocessing)
                if f.name != "embedded"
            ),
        ):
            if own != theirs:
                found.append(f"{name}: {own} ≠ {theirs}")
        return found
