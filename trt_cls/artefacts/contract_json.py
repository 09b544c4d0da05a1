"""The model contract as a file carries it: JSON → `Contract`, every number within its range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from trt_cls.artefacts.decoding import LONGEST_TEXT, ContractFormat, Source, decoded
from trt_cls.contract import COLDEST, HOTTEST, Contract, Preprocessing
from trt_cls.spec.architectures import ModelConfig, is_external
from trt_cls.spec.fields import LARGEST_SIDE, MOST_PIXELS
from trt_cls.spec.problems import Report, TooManyProblems, shown
from trt_cls.spec.rules import check_model

MOST_CLASSES = 100_000
LARGEST_NUMBER = 1e6
"""Of a mean, a deviation or the divisor; the smallest deviation or divisor is its reciprocal."""

Fault = tuple[str, str]
"""A field's path, and what was found there and expected."""


def contract_from_json(text: str | bytes, source: str) -> Contract:
    """The contract in `text`.

    Raises:
        ArtefactError: `text` is no sound contract of a format known here; `source` names the file in the message.
    """
    origin = Source(source, " its contract", "write the file again with this version")
    contract = decoded(Contract, text, origin, ContractFormat)
    require_sound_contract(contract, origin, "")
    return contract


def require_sound_contract(contract: Contract, source: Source, prefix: str) -> None:
    """Refuses values beyond their ranges; `prefix` stands before the fields' paths in the message.

    Raises:
        ArtefactError: names the first.
    """
    for path, fault in _faults(contract):
        raise source.refusal(prefix + path, fault)


def _faults(contract: Contract) -> Iterator[Fault]:
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
