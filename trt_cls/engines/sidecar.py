"""Whether a plan is the one that its sidecar describes and runs on this machine; the command that builds it again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from shlex import quote

from trt_cls.artefacts.sidecar import Profile, Sidecar, sidecar_path, write_sidecar
from trt_cls.errors import ArtefactError
from trt_cls.gpu import Gpu

__all__ = [
    "Profile",
    "Sidecar",
    "not_for_this_machine",
    "read_plan",
    "rebuild_command",
    "require_architecture",
    "require_version",
    "write_sidecar",
]


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
