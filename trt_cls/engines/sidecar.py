"""The JSON file beside a TensorRT plan: contract, fingerprints, and where the plan runs.

The plan itself stays pristine: nothing is glued in front of it that other programs would not read. What is not known
here: how a plan is built or run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from trt_cls.contract import Contract, contract_from_json
from trt_cls.errors import ArtefactError
from trt_cls.files import write_text
from trt_cls.gpu import Gpu

FORMAT = 1
CHUNK = 1 << 20

Builder = Literal["tensorrt", "tensorrt-rtx"]


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
    """Share of images with the same likeliest class, 0 to 1."""
    max_abs_difference: float
    """Largest difference of two probabilities."""
    source: str
    """What the images were, for people."""


@dataclass(frozen=True)
class Sidecar:
    """What is known of one plan."""

    contract: Contract
    sha256: str
    """Of the plan, in hexadecimal."""
    builder: Builder
    builder_version: str
    compute_capabilities: tuple[str, ...]
    """GPU generations that the plan runs on, such as "8.9"."""
    gpu: str
    """Name of the GPU that built the plan; empty where none was needed."""
    profile: Profile
    onnx: str
    """Name of the ONNX file that the plan was built from."""
    onnx_sha256: str
    parity: Parity | None = None
    """None: the plan was not run on the machine that built it."""
    command: str = ""
    """What builds the plan again."""


def sidecar_path(plan: Path) -> Path:
    """`NAME.engine.json` beside `NAME.engine`."""
    return plan.with_name(f"{plan.name}.json")


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_sidecar(plan: Path, sidecar: Sidecar) -> None:
    """Writes `sidecar` beside `plan`, whole or not at all."""
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
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("unknown format")
        return _sidecar_from_dict(data, str(path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(
            f"{path}: can't be read ({error!r}); expected one written by trt-cls, format {FORMAT}; "
            "build the engine again with trt-cls export --engine"
        ) from error


def read_plan(plan: Path, sidecar: Sidecar) -> bytes:
    """The plan's bytes.

    Raises:
        ArtefactError: they are not those that `sidecar` describes.
    """
    data = plan.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sidecar.sha256:
        raise ArtefactError(
            f"{plan}: its SHA-256 is {found[:12]}…, {sidecar_path(plan).name} describes {sidecar.sha256[:12]}…; "
            "expected the pair that was written together; copy both files again, or build the engine again: "
            f"{rebuild_command(plan, sidecar)}"
        )
    return data


def require_version(plan: Path, sidecar: Sidecar, version: str, gpu: Gpu | None) -> None:
    """Refuses a plan that another version of TensorRT built than `version`, the one here: no other loads it.

    Raises:
        ArtefactError: with the command that builds the plan again.
    """
    if version != sidecar.builder_version:
        raise ArtefactError(
            not_for_this_machine(plan, sidecar, version, gpu, "a plan loads in the version that built it alone")
        )


def require_architecture(plan: Path, sidecar: Sidecar, version: str, gpu: Gpu) -> None:
    """Refuses a plan that was built for other GPUs than `gpu`.

    Raises:
        ArtefactError: with the command that builds the plan again.
    """
    if gpu.compute_capability not in sidecar.compute_capabilities:
        raise ArtefactError(not_for_this_machine(plan, sidecar, version, gpu, "it holds no code for this GPU"))


def not_for_this_machine(plan: Path, sidecar: Sidecar, version: str, gpu: Gpu | None, reason: str) -> str:
    """What the plan was built for, what is here, why they don't fit, and what to type."""
    here = f"{gpu.name}, compute capability {gpu.compute_capability}" if gpu else "no GPU visible"
    wanted = " or ".join(sidecar.compute_capabilities)
    return (
        f"{plan}: was built by {sidecar.builder} {sidecar.builder_version} for compute capability {wanted}, here is "
        f"{sidecar.builder} {version}, {here} ({reason}); expected both to be the same; build it again here: "
        f"{rebuild_command(plan, sidecar)}"
    )


def rebuild_command(plan: Path, sidecar: Sidecar) -> str:
    """What to type to build the plan again, beside its ONNX file."""
    onnx, profile = plan.with_name(sidecar.onnx), sidecar.profile
    return (
        f"trt-cls export -m {quote(str(onnx))} -o {quote(str(onnx))} --engine {quote(str(plan))} "
        f"--builder {sidecar.builder} --min-batch {profile.minimum} --opt-batch {profile.optimum} "
        f"--max-batch {profile.maximum}"
    )


def _sidecar_from_dict(data: dict[str, Any], source: str) -> Sidecar:
    contract, parity = json.dumps(data.pop("contract")), data.pop("parity")
    return Sidecar(
        contract=contract_from_json(contract, source),
        profile=Profile(**data.pop("profile")),
        compute_capabilities=tuple(data.pop("compute_capabilities")),
        parity=Parity(**parity) if parity else None,
        **data,
    )
