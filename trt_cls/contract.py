"""The model contract: what a network expects and what its answers mean, carried inside every artefact.

It holds numbers, not mode names, so that a model imported from elsewhere keeps the pixels that it was trained on.
`faults_of` holds them against their ranges. Does not know: files, see `artefacts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from trt_cls.spec.architectures import ModelConfig, is_external
from trt_cls.spec.fields import LARGEST_SIDE, MOST_PIXELS
from trt_cls.spec.problems import Report, TooManyProblems, shown
from trt_cls.spec.rules import check_model
from trt_cls.version import PRODUCER

METADATA_KEY = "trt_cls.contract"
"""Where safetensors metadata and ONNX metadata_props keep the JSON."""
FORMAT = 1
LATER_FORMAT = 2
"""Of a contract with one of LATER_FIELDS: versions that do not know them refuse the file."""
LATER_FIELDS = {"temperature", "task", "thresholds", "conformal", "reject"}
COLDEST, HOTTEST = 0.05, 20.0
"""Range of temperatures."""
INPUT, OUTPUT = "input_1", "predictions"
"""Names of the input and the output in every ONNX file and engine."""

UNDECIDED = 0.5
"""Threshold of a label that nothing was measured for."""
MOST_CLASSES = 100_000
LARGEST_NUMBER = 1e6
"""Of a mean, a deviation or the divisor; the smallest deviation or divisor is its reciprocal."""
LONGEST_TEXT = 4096
"""Of one text in a file, in characters."""

Fault = tuple[str, str]
"""A field's path, and what was found there and expected."""
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
    """"single": one class per image, by a softmax; "multi": any number, each by a sigmoid and its threshold."""
    thresholds: tuple[float, ...] | None = None
    """With task "multi": an image has the labels whose probability is at least theirs."""
    conformal: Conformal | None = None
    reject: Reject | None = None

    def to_json(self) -> str:
        """The contract as one JSON object; `artefacts.decoding` reads it back."""
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


def faults_of(contract: Contract) -> Iterator[Fault]:
    """The values of `contract` that are beyond their ranges."""
    yield from _faults_of_preprocessing(contract.preprocessing)
    yield from _faults_of_model(contract.model)
    channels = contract.preprocessing.channels
    if contract.model.input_shape[0] != channels:
        size = shown(contract.model.input_image_size)
        yield "model.input_image_size", f"{size} found, expected {channels} channels as in preprocessing"
    yield from faults_of_classes(contract.classes)
    if contract.eight_bits is not None and not 0 <= contract.eight_bits <= 1:
        yield "eight_bits", f"{contract.eight_bits:g} found, expected a number in [0, 1]"
    if len(contract.producer) > LONGEST_TEXT:
        yield "producer", f"{len(contract.producer):,} characters found, expected at most {LONGEST_TEXT:,}"
    if contract.temperature is not None and not COLDEST <= contract.temperature <= HOTTEST:
        yield "temperature", f"{contract.temperature:g} found, expected a number from {COLDEST:g} to {HOTTEST:g}"
    yield from _faults_of_thresholds(contract)
    yield from _faults_of_decisions(contract)


def _faults_of_thresholds(contract: Contract) -> Iterator[Fault]:
    wanted, found = len(contract.classes) if contract.task == "multi" else 0, contract.thresholds or ()
    if len(found) != wanted:
        yield "thresholds", f"{len(found):,} numbers found, expected {wanted:,} with task {contract.task}"
    for index, value in enumerate(found):
        if not 0 <= value <= 1:
            yield f"thresholds[{index}]", f"{value:g} found, expected a number in [0, 1]"


def _faults_of_decisions(contract: Contract) -> Iterator[Fault]:
    conformal, reject = contract.conformal, contract.reject
    for name, rule in (("conformal", conformal), ("reject", reject)):
        if rule and contract.task == "multi":
            yield name, "found with task multi, whose labels have thresholds, expected none"
    shares = {"conformal.coverage": conformal.coverage} if conformal else {}
    shares |= {"reject.rate": reject.rate} if reject else {}
    for path, value in shares.items():
        if not 0 < value < 1:
            yield path, f"{value:g} found, expected a number between 0 and 1"
    bounds = {"conformal.quantile": conformal.quantile} if conformal else {}
    bounds |= {"reject.threshold": reject.threshold} if reject else {}
    for path, value in bounds.items():
        if not 0 <= value <= 1:
            yield path, f"{value:g} found, expected a number in [0, 1]"


def _faults_of_preprocessing(found: Preprocessing) -> Iterator[Fault]:
    if found.channels not in (1, 3):
        yield "preprocessing.channels", f"{shown(found.channels)} found, expected 1 or 3"
    for name in ("height", "width"):
        if not 1 <= getattr(found, name) <= LARGEST_SIDE:
            side = shown(getattr(found, name))
            yield f"preprocessing.{name}", f"{side} found, expected an integer from 1 to {LARGEST_SIDE}"
    if found.height * found.width > MOST_PIXELS:
        yield "preprocessing.height", f"{found.height}×{found.width} pixels found, expected at most {MOST_PIXELS:,}"
    if (found.channel_order == "gray") != (found.channels == 1):
        expected = "gray" if found.channels == 1 else "rgb or bgr"
        fault = f"{found.channel_order} found, expected {expected} for {found.channels} channels"
        yield "preprocessing.channel_order", fault
    for name in ("mean", "std"):
        if len(getattr(found, name)) != found.channels:
            count = len(getattr(found, name))
            yield f"preprocessing.{name}", f"{count} numbers found, expected {found.channels}, one for each channel"
    for value in found.mean:
        if not abs(value) <= LARGEST_NUMBER:
            yield "preprocessing.mean", f"{value:g} found, expected at most {LARGEST_NUMBER:g} either way"
    for name, value in (("divisor", found.divisor), *(("std", value) for value in found.std)):
        if not 1 / LARGEST_NUMBER <= value <= LARGEST_NUMBER:
            expected = f"a number from {1 / LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}"
            yield f"preprocessing.{name}", f"{value:g} found, expected {expected}"


def _faults_of_model(model: ModelConfig) -> Iterator[Fault]:
    """By the rules of specs, which hold for networks imported from TAO too."""
    report = Report("")
    try:
        for config, path in ((model, "model_config"), (model.batch_norm_config, "model_config.batch_norm_config")):
            for option in fields(config):
                report.judge(getattr(config, option.name), option.metadata["allowed"], f"{path}.{option.name}")
        if model.activation:
            for option in fields(model.activation):
                value = getattr(model.activation, option.name)
                report.judge(value, option.metadata["allowed"], f"model_config.activation.{option.name}")
        # the options of families mean nothing to other libraries' networks
        own = not is_external(model.arch)
        check_model(model if own else ModelConfig(arch=model.arch, input_image_size=model.input_image_size), report)
    except TooManyProblems:
        pass
    for problem in report.problems:
        yield problem.path.replace("model_config", "model", 1), problem.message


def faults_of_classes(classes: Sequence[str]) -> Iterator[Fault]:
    """What is wrong with the names of a network's classes, by output index."""
    if not 1 <= len(classes) <= MOST_CLASSES:
        yield "classes", f"{len(classes):,} names found, expected 1 to {MOST_CLASSES:,}"
    known: set[str] = set()
    for index, name in enumerate(classes):
        if not 1 <= len(name) <= LONGEST_TEXT or "\0" in name:
            yield f"classes[{index}]", f"{shown(name)} found, expected a name of 1 to {LONGEST_TEXT:,} characters"
        if any(0xD800 <= ord(char) < 0xE000 for char in name):
            yield f"classes[{index}]", f"{shown(name)} found, expected text"
        if name in known:
            yield f"classes[{index}]", f"{shown(name)} found twice, expected each name once"
        known.add(name)
