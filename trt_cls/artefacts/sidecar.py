"""The JSON file beside a TensorRT plan: contract, fingerprints, and where the plan runs.

The plan itself is as TensorRT wrote it, without a header that other programs would not read. Does not know: how a
plan is built or run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from trt_cls.artefacts.decoding import ContractFormat, Format, Origin, decoded, read_bytes, require_sound_contract
from trt_cls.contract import LONGEST_TEXT, Contract, Fault
from trt_cls.errors import ArtefactError
from trt_cls.files import file_sha256 as file_sha256
from trt_cls.files import write_text
from trt_cls.spec.problems import shown

FORMAT = 1
LARGEST_BATCH = 1 << 20
_SHA256, _CAPABILITY = re.compile("[0-9a-f]{64}"), re.compile(r"\d{1,3}\.\d{1,2}")

BuilderName = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Profile:
    """Batch sizes that a plan was built for."""

    minimum: int
    optimum: int
    maximum: int


@dataclass(frozen=True)
class Parity:
    """How far an artefact's answers were from the network's when it was made."""

    images: int
    top1_agreement: float
    """Share of images with the same likeliest class, 0 to 1; of the labels of a multi-label model, that both give."""
    max_abs_difference: float
    """Largest difference of two probabilities."""
    source: str
    """Description of the images, for display."""


@dataclass(frozen=True)
class Sidecar:
    """What is known of one plan."""

    contract: Contract
    sha256: str
    """Of the plan, in hexadecimal."""
    builder: BuilderName
    builder_version: str
    compute_capabilities: tuple[str, ...]
    """GPU generations that the plan runs on, such as "8.9"."""
    gpu: str
    """Name of the GPU that built the plan; empty where none was needed."""
    profile: Profile
    onnx: str
    """Name of the ONNX file that the plan was built from."""
    onnx_sha256: str
    """Empty: not known."""
    parity: Parity | None = None
    """None: the plan was not run on the machine that built it."""
    command: str = ""
    """What builds the plan again."""


def sidecar_path(plan: Path) -> Path:
    """`NAME.engine.json` beside `NAME.engine`."""
    return plan.with_name(f"{plan.name}.json")


def write_sidecar(plan: Path, sidecar: Sidecar) -> None:
    """Writes `sidecar` beside `plan`, completely or not at all."""
    data = {"format": FORMAT, **asdict(sidecar), "contract": json.loads(sidecar.contract.to_json())}
    write_text(sidecar_path(plan), json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def read_sidecar(plan: Path) -> Sidecar:
    """What is known of `plan`; the plan itself is not read.

    Raises:
        ArtefactError: there is no sidecar, or it can't be read.
    """
    path = sidecar_path(plan)
    if not path.is_file():
        raise ArtefactError(
            f"{plan}: {path.name} is not beside it; expected the pair that trt-cls writes; "
            "copy both files, or build the engine again with trt-cls export --engine"
        )
    source = Origin(str(path), "", "build the engine again with trt-cls export --engine")
    sidecar = decoded(Sidecar, read_bytes(path), source, _Formats)
    require_sound_contract(sidecar.contract, source, "contract.")
    for field, fault in _faults(sidecar):
        raise source.refusal(field, fault)
    return sidecar


class _Formats(Format):
    contract: ContractFormat


def parity_from_json(text: str, source: str) -> Parity:
    """The parity in `text`, which the file `source` holds.

    Raises:
        ArtefactError: it can't be read, or its numbers are none.
    """
    origin = Origin(source, " its parity", "export it again from its .safetensors checkpoint")
    parity = decoded(Parity, text, origin, None)
    for field, fault in _faults_of_parity(parity):
        raise origin.refusal(field, fault)
    return parity


def _faults(found: Sidecar) -> Iterator[Fault]:
    for name in ("sha256", *(["onnx_sha256"] if found.onnx_sha256 else [])):
        if not _SHA256.fullmatch(getattr(found, name)):
            yield name, f"{shown(getattr(found, name))} found, expected 64 hexadecimal digits"
    wrong = [value for value in found.compute_capabilities if not _CAPABILITY.fullmatch(value)]
    if wrong or not found.compute_capabilities:
        yield (
            "compute_capabilities",
            f'{shown(wrong[0] if wrong else "")} found, expected GPU generations such as "8.9"',
        )
    profile = found.profile
    if not 1 <= profile.minimum <= profile.optimum <= profile.maximum <= LARGEST_BATCH:
        sizes = ", ".join(shown(size) for size in (profile.minimum, profile.optimum, profile.maximum))
        yield "profile", f"{sizes} found, expected rising batch sizes from 1 to {LARGEST_BATCH:,}"
    if found.onnx in ("", ".", "..") or "/" in found.onnx or "\0" in found.onnx:
        yield "onnx", f"{shown(found.onnx)} found, expected the name of a file"
    for name in ("builder_version", "gpu", "onnx", "command"):
        if len(getattr(found, name)) > LONGEST_TEXT:
            yield name, f"{len(getattr(found, name)):,} characters found, expected at most {LONGEST_TEXT:,}"
    if found.parity:
        yield from ((f"parity.{name}", fault) for name, fault in _faults_of_parity(found.parity))


def _faults_of_parity(found: Parity) -> Iterator[Fault]:
    if found.images < 0:
        yield "images", f"{found.images} found, expected an integer ≥ 0"
    for name in ("top1_agreement", "max_abs_difference"):
        if not 0 <= getattr(found, name) <= 1:
            yield name, f"{getattr(found, name):g} found, expected a number in [0, 1]"
    if len(found.source) > LONGEST_TEXT:
        yield "source", f"{len(found.source):,} characters found, expected at most {LONGEST_TEXT:,}"
