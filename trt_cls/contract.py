"""The model contract: what a network expects and what its answers mean, carried inside every artefact.

It holds numbers, not mode names, so that a model imported from elsewhere keeps the pixels that it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from trt_cls.errors import ArtefactError
from trt_cls.spec.experiment import Activation, BatchNormConfig, ModelConfig
from trt_cls.version import PRODUCER

METADATA_KEY = "trt_cls.contract"
"""Where safetensors metadata and ONNX metadata_props keep the JSON."""
FORMAT = 1

Precision = Literal["fp32", "fp16", "int8"]


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
class Contract:
    """One network's contract."""

    model: ModelConfig
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    """Class names by output index."""
    precision: Precision = "fp32"
    producer: str = PRODUCER

    def to_json(self) -> str:
        """The contract as one JSON object; `contract_from_json` reads it back."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    def differences(self, other: Contract) -> list[str]:
        """What differs in meaning, as "name: own value ≠ other value".

        Precision, producer, and which side of the input does a step of the preprocessing are no such thing.
        """
        found = []
        for name, own, theirs in (
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


def contract_from_json(text: str, source: str) -> Contract:
    """The contract in `text`.

    Raises:
        ArtefactError: `text` is no contract of a format known here; `source` names the file in the message.
    """
    try:
        data = json.loads(text)
        if data.pop("format") != FORMAT:
            raise ValueError("unknown format")
        return Contract(
            model=_model_from_dict(data.pop("model")),
            preprocessing=_preprocessing_from_dict(data.pop("preprocessing")),
            classes=tuple(str(name) for name in data.pop("classes")),
            **data,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(
            f"{source}: its contract can't be read ({error!r}); expected one written by trt-cls, format {FORMAT}; "
            "write the file again with this version"
        ) from error


def _model_from_dict(data: Mapping[str, Any]) -> ModelConfig:
    given = dict(data)
    given["freeze_blocks"] = tuple(given["freeze_blocks"])
    given["batch_norm_config"] = BatchNormConfig(**given["batch_norm_config"])
    given["activation"] = Activation(**given["activation"]) if given["activation"] else None
    return ModelConfig(**given)


def _preprocessing_from_dict(data: Mapping[str, Any]) -> Preprocessing:
    given = dict(data)
    given["mean"], given["std"] = tuple(given["mean"]), tuple(given["std"])
    return Preprocessing(**given)
