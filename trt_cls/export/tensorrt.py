"""Builds TensorRT engines from ONNX files: which TensorRT can do so here, the plan, and its sidecar.

One code path for TensorRT 10, 11 and TensorRT-RTX. The precision is the graph's: every network is strongly typed and no
flag changes what a layer computes with. Does not know: how a plan is run (`engines.tensorrt`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Literal

from trt_cls.artefacts.sidecar import BuilderName, Parity, Profile, Sidecar, file_sha256, sidecar_path, write_sidecar
from trt_cls.contract import INPUT, Contract, Precision
from trt_cls.engines.sidecar import rebuild_command
from trt_cls.engines.tensorrt.api import import_runtime, make_logger
from trt_cls.errors import DeviceError, ExportError, MissingDependency, RequestError
from trt_cls.export.parity import Check
from trt_cls.files import atomic, results_folder
from trt_cls.gpu import Gpu, visible_gpu

BuilderRequest = Literal["auto", "tensorrt", "tensorrt-rtx", "none"]

HOW_TO_GET_ONE = (
    'pip install "trt-cls[rtx]" (builds without a GPU), or "trt-cls[gpu]" on the machine that runs the engine'
)

DEFAULT_PROFILE = Profile(1, 8, 32)
"""From one image to 32 camera streams at a time, tuned for 8; memory is taken for the largest."""
WORKSPACE = 2 << 30
"""Bytes. A Jetson shares its memory with the GPU; the largest convolutions here ask for less."""
RTX_CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""Ampere, Ada and Blackwell. NVIDIA's support matrices of TensorRT-RTX 1.0 to 1.5 call 8.6, 8.9 and 12.0 portable; 1.7
names 8.0 (A100) too. Turing (7.5) and GB10 (12.1) need an engine of their own. No Hopper and no Jetson."""
FP8_SINCE = 8.9
"""The lowest compute capability with FP8."""
MESSAGES_SHOWN = 3


@dataclass(frozen=True)
class BuilderChoice:
    """A builder that can work here."""

    name: BuilderName
    module: ModuleType
    gpu: Gpu | None
    """The GPU that it tunes for; None: it compiles for GPU generations."""
    reason: str
    """Why this one."""
    generations: tuple[str, ...] = RTX_CAPABILITIES
    """That TensorRT-RTX compiles for."""

    @property
    def version(self) -> str:
        """Of the TensorRT library."""
        return str(self.module.__version__)


def choose_builder(request: BuilderRequest, *, required: bool) -> tuple[BuilderChoice | None, str]:
    """The builder to use, or None and the reason why.

    "auto" takes TensorRT, whose engines are tuned to the GPU at hand, before TensorRT-RTX. TensorRT builds on the GPU
    that will run the engine; TensorRT-RTX compiles for GPU generations and needs no GPU.

    Raises:
        MissingDependency, DeviceError: there is none, though `required` or asked for by name.
    """
    if request == "none":
        return None, "not asked for"
    if request == "tensorrt":
        return _tensorrt(visible_gpu()), ""
    if request == "tensorrt-rtx":
        return _tensorrt_rtx("asked for"), ""
    try:
        return _tensorrt(visible_gpu()), ""
    except MissingDependency:
        why = "tensorrt is not installed"
    except DeviceError:
        why = "tensorrt needs a GPU, and none is visible"
    try:
        return _tensorrt_rtx(why), ""
    except MissingDependency:
        if required:
            raise
        return None, f"{why}, and tensorrt-rtx is not installed"


def for_generations(choice: BuilderChoice, precision: Precision, asked: Sequence[str] = ()) -> BuilderChoice:
    """`choice` for the compute capabilities `asked`, such as "8.9"; for all that have `precision` where none is.

    Raises:
        RequestError: TensorRT-RTX does not build for one that is asked for, or that has no FP8.
        DeviceError: the GPU that TensorRT builds for is another, or has no FP8.
    """
    gpu = choice.gpu
    able = (gpu.compute_capability,) if gpu else compute_capabilities(choice)
    wanted = asked or tuple(name for name in able if gpu or precision != "fp8" or float(name) >= FP8_SINCE)
    kind = DeviceError if gpu else RequestError
    if strange := [name for name in wanted if name not in able]:
        raise kind(
            f"--compute-capability {strange[0]}: {choice.name} builds for {', '.join(able)} here; expected one; "
            "leave it out for all"
        )
    if precision == "fp8" and (old := [name for name in wanted if float(name) < FP8_SINCE]):
        where = f"{gpu.name} has" if gpu else "--compute-capability names"
        raise kind(
            f"FP8 needs compute capability {FP8_SINCE} or newer, and {where} {', '.join(old)}; expected none older; "
            "export with --int8 or --fp16 for it"
        )
    return choice if gpu else replace(choice, generations=tuple(f"SM{name.replace('.', '')}" for name in wanted))


def profile_from_batches(minimum: int | None = None, optimum: int | None = None, maximum: int | None = None) -> Profile:
    """The batch sizes given, the others at 1, 8 and 32 or as near to that as those given allow.

    Raises:
        RequestError: not 1 ≤ minimum ≤ optimum ≤ maximum.
    """
    low = minimum if minimum is not None else 1
    high = maximum if maximum is not None else max(DEFAULT_PROFILE.maximum, low, optimum or 0)
    middle = optimum if optimum is not None else min(max(DEFAULT_PROFILE.optimum, low), high)
    if not 1 <= low <= middle <= high:
        raise RequestError(
            f"--min-batch {low}, --opt-batch {middle}, --max-batch {high}: out of order; expected 1 ≤ min ≤ opt ≤ max; "
            "change the one that does not fit"
        )
    return Profile(low, middle, high)


def build_engine(
    onnx_file: Path,
    contract: Contract,
    path: Path,
    choice: BuilderChoice,
    profile: Profile,
    check: Check,
    say: Callable[[str], None],
) -> Parity | None:
    """Builds an engine of `onnx_file`, writes it with its sidecar, and returns its parity; None: it could not be run.

    Raises:
        ExportError: it can't be built, or does not answer as the network does; it is then not there.
    """
    say(f"building {path} with {choice.name} {choice.version} ({choice.reason})")
    plan = plan_from_onnx(onnx_file, contract, choice, profile)
    sidecar = Sidecar(
        contract=contract,
        sha256=hashlib.sha256(plan).hexdigest(),
        builder=choice.name,
        builder_version=choice.version,
        compute_capabilities=compute_capabilities(choice),
        gpu=choice.gpu.name if choice.gpu else "",
        profile=profile,
        onnx=onnx_file.name,
        onnx_sha256=file_sha256(onnx_file),
    )
    sidecar = replace(sidecar, command=rebuild_command(Path(path.name), sidecar))
    results_folder(path.parent)

    def parity(draft: Path) -> Parity | None:
        try:
            require_gpu_of_plan(sidecar)
            found = check(draft, "auto")
        except (MissingDependency, DeviceError) as error:
            say(f"{path.name} was not run: {error}")
            return None
        for remark in found.remarks:
            say(f"  {remark}")
        return found.parity

    return write_engine(plan, path, sidecar, parity)


def plan_from_onnx(onnx_file: Path, contract: Contract, choice: BuilderChoice, profile: Profile) -> bytes:
    """The serialized engine.

    Raises:
        ExportError: TensorRT refused the file or failed to build; its own messages are in the error.
    """
    trt: Any = choice.module
    logger = make_logger(trt)
    try:
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
    except TypeError as error:  # what the bindings raise for a null pointer
        raise _failure(logger, choice, "did not start") from error
    if not parser.parse_from_file(str(onnx_file)):
        found = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise _failure(logger, choice, f"can't read {onnx_file.name}", found)
    config = _config(trt, builder, choice)
    if config.add_optimization_profile(_optimization_profile(builder, contract, profile)) < 0:
        raise _failure(
            logger, choice, f"refused the batch sizes {profile.minimum}, {profile.optimum}, {profile.maximum}"
        )
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(logger, choice, f"could not build an engine from {onnx_file.name}")
    return bytes(plan)


def compute_capabilities(choice: BuilderChoice) -> tuple[str, ...]:
    """The GPU generations that a plan of this builder runs on, as in "8.9"."""
    if choice.gpu is not None:
        return (choice.gpu.compute_capability,)
    return tuple(f"{name[2:-1]}.{name[-1]}" for name in choice.generations)


def require_gpu_of_plan(sidecar: Sidecar) -> None:
    """Raises a DeviceError where no GPU is visible that the plan was built for."""
    gpu = visible_gpu()
    if gpu is None:
        raise DeviceError("no NVIDIA GPU is visible here")
    if gpu.compute_capability not in sidecar.compute_capabilities:
        raise DeviceError(
            f"{gpu.name} has compute capability {gpu.compute_capability}, and the engine is for "
            f"{', '.join(sidecar.compute_capabilities)}"
        )


def write_engine(plan: bytes, path: Path, sidecar: Sidecar, check: Callable[[Path], Parity | None]) -> Parity | None:
    """Writes the plan and its sidecar, both or neither, once `check` has seen the pair in a folder of its own.

    Returns what `check` measured, which the sidecar then holds too.
    """
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        draft.write_bytes(plan)
        write_sidecar(draft, sidecar)
        parity = check(draft)
        write_sidecar(draft, replace(sidecar, parity=parity))
        with atomic(sidecar_path(path)) as sidecar_beside, atomic(path) as plan_beside:
            sidecar_path(draft).replace(sidecar_beside)
            draft.replace(plan_beside)
    return parity


def _tensorrt(gpu: Gpu | None) -> BuilderChoice:
    module = import_runtime("tensorrt", "Building an engine with TensorRT")
    if gpu is None:
        raise DeviceError(
            "TensorRT builds an engine on the GPU that will run it, and no NVIDIA GPU is visible here; expected one; "
            "run the command on the machine that has it, or use --builder tensorrt-rtx, which needs none"
        )
    return BuilderChoice("tensorrt", module, gpu, f"tuned to the GPU here, {gpu.name}")


def _tensorrt_rtx(reason: str) -> BuilderChoice:
    module = import_runtime("tensorrt-rtx", "Building an engine without TensorRT or without a GPU")
    return BuilderChoice("tensorrt-rtx", module, None, reason)


def _config(trt: Any, builder: Any, choice: BuilderChoice) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    # On by default. Its 10-bit mantissa is float16's: float32 would miss its bound of parity by an order of magnitude,
    # and who wants that speed asks for --fp16.
    config.clear_flag(trt.BuilderFlag.TF32)
    if choice.name == "tensorrt-rtx":
        config.num_compute_capabilities = len(choice.generations)
        for index, name in enumerate(choice.generations):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
                raise ExportError(
                    f"tensorrt-rtx {choice.version} can't build for {name}; expected it to; install a newer one"
                )
    return config


def _optimization_profile(builder: Any, contract: Contract, profile: Profile) -> Any:
    optimization = builder.create_optimization_profile()
    batches = (profile.minimum, profile.optimum, profile.maximum)
    optimization.set_shape(INPUT, *((batch, *contract.preprocessing.input_shape) for batch in batches))
    return optimization


def _failure(logger: Any, choice: BuilderChoice, what: str, found: Sequence[str] = ()) -> ExportError:
    """An error that ends with the last of TensorRT's own messages: it logs errors on its way to success, too."""
    messages = (found or logger.errors)[-MESSAGES_SHOWN:] or ["it gave no reason"]
    reason = " | ".join(" ".join(message.split()) for message in messages)
    return ExportError(
        f"{choice.name} {choice.version} {what}: {reason}; expected an engine; the ONNX file stands: "
        "run it as it is, or build it with another version of TensorRT"
    )
