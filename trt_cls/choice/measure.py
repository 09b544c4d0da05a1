"""Makes the variants of a network and measures each on every provider of this machine; a stopped run can be resumed.

Each row is written as soon as it is known. `choose.json` beside them records what was measured, and how.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.sidecar import file_sha256
from trt_cls.choice.decision import REFERENCE, Measured
from trt_cls.choice.table import read_rows, write_rows
from trt_cls.contract import Precision
from trt_cls.data.folder import ImageFolder
from trt_cls.data.split import Dataset, evaluation_dataset
from trt_cls.engines.backends import PROVIDERS, Provider, open_engine
from trt_cls.engines.engine import Engine
from trt_cls.errors import ArtefactError, DeviceError, EngineError, ExportError, MissingDependency, RequestError
from trt_cls.evaluation.benchmark import benchmark
from trt_cls.evaluation.evaluate import evaluate
from trt_cls.evaluation.metrics import mcnemar, wilson_interval
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8, calibration_dataset
from trt_cls.files import write_text
from trt_cls.spec.experiment import Experiment

Variant = Literal["fp32", "fp16", "int8", "auto", "fp8"]
TIMED = 64
"""Images that speed is measured with."""


@dataclass(frozen=True)
class Request:
    """What is to be measured."""

    model: Path
    folder: Path
    """For files and results."""
    variants: tuple[Variant, ...]
    pruned: tuple[Path, ...] = ()
    """Checkpoints of other networks for the same task."""
    experiment: Experiment | None = None
    images: Path | None = None
    """Labeled; None: those of the spec."""
    calibration: Path | None = None
    """None: the training images of the spec."""
    max_loss: float = 0.5
    """For "auto"."""
    batch_size: int = 32
    """Of the throughput."""
    seconds: float = 2.0
    """For each figure of speed."""

    @cached_property
    def dataset(self) -> Dataset:
        """The labeled images.

        Raises:
            RequestError: none are named.
        """
        found = Dataset(self.images) if self.images else None
        if found is None and self.experiment:
            found = evaluation_dataset(self.experiment)
        if found is None:
            raise RequestError(
                "no labeled images to measure accuracy on; expected --images DIR with a sub-folder per class, or "
                "-e SPEC whose evaluation dataset is taken; add one of them"
            )
        return found


@dataclass(frozen=True)
class Recipe:
    """How one variant is made."""

    name: str
    checkpoint: Path
    precision: Precision
    quantization: Int8

    def key(self) -> str:
        """What the file and its measurements depend on."""
        return f"{file_sha256(self.checkpoint)} {self.precision} {self.quantization}"


@dataclass
class State:
    """What earlier runs left in the folder."""

    settings: dict[str, Any]
    made: dict[str, str] = field(default_factory=dict)
    """Variant → the key of its recipe."""
    refused: dict[str, str] = field(default_factory=dict)
    """Variant, or variant and provider → why it has no row."""
    right: str = ""
    """Of the reference: 1 for each image that it gets right, else 0."""


def measure(request: Request, say: Callable[[str], None]) -> tuple[list[Measured], list[str]]:
    """The rows of all variants, and a sentence for each that has none.

    Raises:
        RequestError: the request is wrong, or the folder holds the measurements of another.
        ExportError: the reference can't be made.
    """
    recipes = list(recipes_of(request))
    if any(recipe.precision in ("int8", "fp8") for recipe in recipes):
        calibration_dataset(Int8(request.calibration), request.experiment)  # refuses before anything is made
    folder = request.dataset.labeled(read_contract(request.model).classes, allow_missing=True)
    state, rows = _resumed(request, folder)
    absent: dict[str, str] = {}
    for recipe in recipes:
        path, key = request.folder / f"{recipe.name}.onnx", recipe.key()
        if state.made.get(recipe.name) != key:
            rows = [row for row in rows if row.name != recipe.name]
            state.refused = {k: v for k, v in state.refused.items() if k.split(" on ")[0] != recipe.name}
            _make(recipe, path, request, state, say)
            state.made[recipe.name] = key
            _save(request, state, rows)
        if recipe.name not in state.refused:
            _measure(recipe.name, path, request, folder, state, rows, absent, say)
    if not rows:
        raise DeviceError(f"nothing here runs the files: {'; '.join(absent.values())}")
    order = {recipe.name: number for number, recipe in enumerate(recipes)}
    rows = sorted((row for row in rows if row.name in order), key=lambda row: order[row.name])
    notes = [f"{name}: {why}" for name, why in state.refused.items() if name.split(" on ")[0] in order]
    return rows, notes + [f"{provider}, not measured: {why}" for provider, why in absent.items()]


def _measure(
    name: str,
    path: Path,
    request: Request,
    folder: ImageFolder,
    state: State,
    rows: list[Measured],
    absent: dict[str, str],
    say: Callable[[str], None],
) -> None:
    """Adds to `rows` those of a variant on all providers, and to `absent` the providers that are not here."""
    for provider in PROVIDERS[1:]:  # without "auto", which is one of them
        label = f"{name} on {provider}"
        file = path.with_suffix(".engine") if provider == "tensorrt" else path
        known = any((row.name, row.provider) == (name, provider) for row in rows)
        if known or label in state.refused or provider in absent or not file.exists():
            continue
        try:
            with closing(open_engine(file, provider)) as engine:
                say(f"measuring {label}")
                rows.append(_measured(engine, file, path, provider, name, request, folder, state))
        except (MissingDependency, DeviceError) as error:
            absent[provider] = str(error)
        except (ArtefactError, EngineError) as error:
            state.refused[label] = str(error)
        _save(request, state, rows)


def recipes_of(request: Request) -> Iterator[Recipe]:
    """How each variant is made, the reference first.

    Raises:
        RequestError: a checkpoint is none in fp32, or two have one name.
    """
    formats = ("int8", "fp8") if "fp8" in request.variants else ("int8",)
    plain = Int8(request.calibration)
    recipes: dict[Variant, tuple[Precision, Int8]] = {
        "fp32": ("fp32", Int8()),
        "fp16": ("fp16", Int8()),
        "int8": ("int8", plain),
        "fp8": ("fp8", replace(plain, formats=("fp8",))),
        "auto": ("fp8" if "fp8" in formats else "int8", replace(plain, max_loss=request.max_loss, formats=formats)),  # type: ignore[arg-type]
    }
    classes = read_contract(request.model).classes
    names: set[str] = set()
    for checkpoint in (request.model, *request.pruned):
        contract = read_contract(checkpoint)
        if checkpoint.suffix != ".safetensors" or contract.precision != "fp32":
            raise RequestError(
                f"{checkpoint}: computes in {contract.precision}; expected a .safetensors checkpoint in fp32, of which "
                "the variants are made; name the one that train wrote"
            )
        if contract.classes != classes:
            raise RequestError(f"{checkpoint}: its classes are not those of {request.model}; expected the same task")
        prefix = "" if checkpoint is request.model else f"{checkpoint.stem}-"
        for variant, (precision, quantization) in recipes.items():
            if variant in request.variants or (variant == REFERENCE and not prefix):
                if prefix + variant in names:
                    raise RequestError(f"{checkpoint}: another checkpoint has its name; expected different names")
                names.add(prefix + variant)
                yield Recipe(prefix + variant, checkpoint, precision, quantization)


def _make(recipe: Recipe, path: Path, request: Request, state: State, say: Callable[[str], None]) -> None:
    begun = request.folder.glob(f".{glob.escape(recipe.name)}.*")  # by a run that was killed
    for old in (path, path.with_suffix(".engine"), path.with_suffix(".engine.json"), *begun):
        old.unlink(missing_ok=True)
    say(f"making {recipe.name} of {recipe.checkpoint}")
    try:
        export(
            recipe.checkpoint,
            path,
            precision=recipe.precision,
            int8=recipe.quantization,
            experiment=request.experiment,
            images=request.images,
            say=say,
        )
    except ExportError as error:
        if recipe.name == REFERENCE:
            raise
        if path.exists():  # the file is good, and no engine could be built of it
            state.refused[f"{recipe.name} on tensorrt"] = str(error)
        else:
            state.refused[recipe.name] = str(error)
        say(f"  {error}")


def _measured(
    engine: Engine,
    file: Path,
    onnx: Path,
    provider: Provider,
    name: str,
    request: Request,
    folder: ImageFolder,
    state: State,
) -> Measured:
    workers = os.cpu_count() or 1
    found = evaluate(engine, folder, top_k=1, batch_size=request.batch_size, workers=workers)
    answers = found.predictions
    right = "".join("01"[int(hit)] for hit in answers.probabilities.argmax(1) == answers.labels)
    state.right = state.right or right
    pairs = list(zip(state.right, right, strict=True))
    timed = folder.samples[:TIMED]
    latency, throughput = (
        benchmark(engine, timed, batch_size=size, workers=workers, wanted="engine", seconds=request.seconds).stages[0]
        for size in (1, request.batch_size)
    )
    low, high = wilson_interval(right.count("1"), len(right))
    plan = onnx.with_suffix(".engine")
    return Measured(
        name,
        str(file),
        provider,
        found.metrics.top_1_accuracy,
        low,
        high,
        mcnemar(pairs.count(("1", "0")), pairs.count(("0", "1"))),
        found.metrics.ece,
        engine.contract.eight_bits or 0.0,
        file.stat().st_size,
        plan.stat().st_size if plan.exists() else None,
        latency.p50_ms,
        latency.p99_ms,
        throughput.images_per_second,
    )


def _settings(request: Request, folder: ImageFolder) -> dict[str, Any]:
    """What the measurements of a folder have in common."""
    return {
        "images": str(request.dataset),
        "count": len(folder.samples),
        "batch_size": request.batch_size,
        "seconds": request.seconds,
        "calibration": str(request.calibration or ""),
        "reference": file_sha256(request.model),
    }


def _resumed(request: Request, folder: ImageFolder) -> tuple[State, list[Measured]]:
    settings, path = _settings(request, folder), _state_path(request)
    if not path.exists():
        return State(settings), []
    try:
        state = State(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RequestError(f"{path}: can't be read ({error}); expected what choose wrote; remove the folder") from error
    for name, value in settings.items():
        if state.settings.get(name) != value:
            raise RequestError(
                f"{request.folder} holds measurements of another request: {name} {state.settings.get(name)}, here "
                f"{value}; expected the same; name another folder with -r"
            )
    table = request.folder / "choose.csv"
    return state, read_rows(table) if table.exists() else []


def _save(request: Request, state: State, rows: Sequence[Measured]) -> None:
    if rows:
        write_rows(request.folder / "choose.csv", rows)
    write_text(_state_path(request), json.dumps(asdict(state), indent=1) + "\n")


def _state_path(request: Request) -> Path:
    return request.folder / "choose.json"
