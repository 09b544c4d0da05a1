"""The export from end to end: a checkpoint or an ONNX file in, a checked ONNX file and an engine out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from trt_cls.artefacts.model_file import PLANS
from trt_cls.artefacts.onnx_file import OnnxModel, write_onnx
from trt_cls.artefacts.sidecar import Parity, Profile
from trt_cls.contract import Contract, Precision
from trt_cls.data.split import Dataset, evaluation_dataset
from trt_cls.errors import DeviceError, ExportError, MissingDependency, RequestError
from trt_cls.evaluation.prediction_sets import calibration_rows
from trt_cls.export.confidence import Halves, Rules, calibrated, fit_temperature, validation_halves, with_temperature
from trt_cls.export.embedding import embed_preprocessing
from trt_cls.export.fp16 import fp16_from_fp32
from trt_cls.export.int8 import EIGHT_BITS, Int8, calibration_dataset, quantize
from trt_cls.export.original import Original
from trt_cls.export.parity import Check, Checked, figures
from trt_cls.export.sample_images import images_for
from trt_cls.export.tensorrt import (
    DEFAULT_PROFILE,
    BuilderChoice,
    BuilderRequest,
    build_engine,
    choose_builder,
    for_generations,
)
from trt_cls.files import atomic, results_folder
from trt_cls.preprocessing.description import require_spec_fits
from trt_cls.spec.experiment import Experiment

NO_RUNTIME = 'onnxruntime is not installed: pip install "trt-cls[cpu]", then export again'


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    onnx: Path
    precision: Precision
    parity: Parity | None
    """None: the file was not run."""
    engine: Path | None
    engine_parity: Parity | None
    """None: there is no engine, or this machine can't run it."""
    no_engine: str
    """Why there is no engine; empty where there is one."""
    no_parity: str = ""
    """Why the ONNX file was not run and what to do, where it was not."""


def export(
    model: Path,
    output: Path,
    *,
    precision: Precision | None = None,
    int8: Int8 = Int8(),
    embed: bool = False,
    calibrate: bool = False,
    rules: Rules = Rules(),
    experiment: Experiment | None = None,
    images: Path | None = None,
    engine: Path | None = None,
    builder: BuilderRequest = "auto",
    profile: Profile = DEFAULT_PROFILE,
    capabilities: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Writes an ONNX file and an engine, each only after its answers were compared with those of `model`.

    `model` is a checkpoint or an ONNX file written here; `precision` None keeps its own; `int8` says how 8 bits are
    reached, `calibrate` folds in a temperature, `rules` are measured on the ONNX file. Images come from `images`, else
    `experiment`, else `int8`, else they are random. An engine is built where it or a `builder` is named, or can be.

    Raises:
        RequestError: file names or precision are wrong, or `model` and `experiment` disagree.
        ExportError: a file could not be made or does not answer as `model` does; it is then not there.
        MissingDependency, DeviceError: the engine that was asked for can't be built here.
    """
    original = Original(model)
    contract = original.contract
    precision = precision or contract.precision
    target = _target(contract, precision, embed=embed, calibrate=calibrate, rules=rules)
    _check_request(original, target, output, engine, builder, int8, experiment)
    labeled = _images_to_check(contract, images, experiment)
    calibration = calibration_dataset(int8, experiment) if contract.precision != precision in EIGHT_BITS else None
    choice, no_engine = _builder(builder, engine is not None, precision, capabilities)
    check = _check(original, target, labeled or calibration)
    halves = validation_halves(images, experiment, contract.classes, contract.task) if calibrate or rules else None
    target, check = _fitted(target, check, halves, say) if calibrate and halves else (target, check)
    measure = partial(rules.measured, images=halves, say=say) if rules and halves else None
    results_folder(output.parent)
    if copied := original.is_onnx and contract == target:
        found = Checked(parity) if (parity := original.copy_to(output)) else None
    else:
        plain = network = original.graph(say)
        if calibration:
            network = quantize(network, int8, calibration, labeled, say)
            target = replace(target, precision=network.contract.precision)  # of formats to choose from, it may be int8
            check = replace(check, precision=target.precision)
            choice, no_engine = _builder(builder, engine is not None, target.precision, capabilities)
        found, target = _write_onnx(plain, _converted(network, target, check, say), output, check, measure)
    no_parity = f"{model} records none: export it again from its .safetensors checkpoint" if copied else NO_RUNTIME
    say(_copied(original, output, target, found) if copied else _written(output, target, found))
    result = ExportResult(output, target.precision, found.parity if found else None, None, None, no_engine, no_parity)
    if choice:
        engine = engine or output.with_suffix(".engine")
        parity = build_engine(output, target, engine, choice, profile, check, say)
        say(_written(engine, target, Checked(parity) if parity else None))
        result = replace(result, engine=engine, engine_parity=parity)
    return result


def _check(original: Original, target: Contract, source: Dataset | None) -> Check:
    images = images_for(target.preprocessing, source, classes=target.classes)
    return Check(original, target.precision, images, thresholds=original.contract.thresholds)


def _images_to_check(contract: Contract, images: Path | None, experiment: Experiment | None) -> Dataset | None:
    found = Dataset(images) if images else evaluation_dataset(experiment) if experiment else None
    return found.with_labels_of(contract.task) if found else None


def _target(contract: Contract, precision: Precision, *, embed: bool, calibrate: bool, rules: Rules) -> Contract:
    """What is asked for; a temperature and rules that are not known yet are 0."""
    rules.require_possible(contract)
    fed = replace(contract.preprocessing, embedded=embed or contract.preprocessing.embedded)
    temperature = 0.0 if calibrate else contract.temperature
    return rules.promised(replace(contract, precision=precision, preprocessing=fed, temperature=temperature))


def _fitted(target: Contract, check: Check, images: Halves, say: Callable[[str], None]) -> tuple[Contract, Check]:
    """Both with the temperature of the model on `images`."""
    temperature = fit_temperature(check.model, images, say)
    target = with_temperature(target, temperature)
    return target, replace(check, temperature=temperature, thresholds=target.thresholds)


def _builder(
    builder: BuilderRequest, required: bool, precision: Precision, capabilities: Sequence[str]
) -> tuple[BuilderChoice | None, str]:
    """The builder for a file in `precision`, or None and the reason why."""
    choice, why = choose_builder(builder, required=required or bool(capabilities))
    try:
        return for_generations(choice, precision, capabilities) if choice else None, why
    except DeviceError as error:
        if required or capabilities or builder != "auto":
            raise
        return None, str(error)


def _converted(network: OnnxModel, target: Contract, check: Check, say: Callable[[str], None]) -> OnnxModel:
    """`network` converted to `target`; where that has 8 bits, `network` has them already."""
    own = network.contract
    if target.precision == "fp16" != own.precision:
        network = fp16_from_fp32(network)
    if target.temperature is not None and target.temperature != own.temperature:
        images = replace(check.images, preprocessing=own.preprocessing)
        network = calibrated(network, target.temperature, images, say)
    return embed_preprocessing(network) if target.preprocessing.embedded else network


def _written(path: Path, contract: Contract, found: Checked | None) -> str:
    line = f"wrote {path} ({contract.precision}, {path.stat().st_size / 1e6:.1f} MB)"
    return "\n  ".join([line, figures(found.parity, contract.task), *found.remarks] if found else [line])


def _copied(original: Original, output: Path, contract: Contract, found: Checked | None) -> str:
    """Says that nothing was computed, and when the file was checked."""
    same = original.is_at(output)
    written = datetime.fromtimestamp(output.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    line = f"{output}: unchanged, left as it is" if same else f"copied {original.path} to {output}, unchanged"
    checked = f"checked when it was written, {written}: {figures(found.parity, contract.task)}" if found else None
    return f"{line}; not checked again\n  {checked or 'not checked'}"


def _check_request(
    original: Original,
    target: Contract,
    output: Path,
    engine: Path | None,
    builder: BuilderRequest,
    int8: Int8,
    experiment: Experiment | None,
) -> None:
    model, contract = original.path, original.contract
    if experiment:
        require_spec_fits(experiment, "the spec", contract, model, "train")
    if output.suffix != ".onnx":
        raise RequestError(f"-o {output}: expected a name that ends in .onnx; use -o {output.with_suffix('.onnx')}")
    if engine is not None and engine.suffix not in PLANS:
        raise RequestError(
            f"--engine {engine}: expected a name that ends in .engine; use --engine {engine.with_suffix('.engine')}"
        )
    if engine is not None and builder == "none":
        raise RequestError(
            f"--engine {engine} asks for an engine and --builder none for no engine; leave one of them out"
        )
    if contract.precision in EIGHT_BITS and int8 not in (Int8(), Int8(formats=("fp8",))):
        raise RequestError(
            f"{model} computes in {contract.precision} with ranges of its own; expected no flag that says how to "
            "measure or choose them; leave --calibration-… and --int8-… out, or export a model in fp32"
        )
    same_answers = (contract.temperature, contract.precision) == (target.temperature, target.precision)
    if not same_answers and (held := calibration_rows(contract)):
        raise RequestError(
            f"{model} is calibrated in {contract.precision} already, with "
            f"{', '.join(f'{name.lower()} {value}' for name, value in held)}; expected a model that is not; "
            "export its checkpoint with --calibrate, --coverage or --reject-rate"
        )
    if contract == target:
        return
    if contract.precision not in ("fp32", target.precision):
        raise RequestError(
            f"{model} computes in {contract.precision}, and {target.precision} was asked for; expected a model "
            "in fp32; export from the checkpoint of one"
        )
    if contract.preprocessing.embedded:
        raise RequestError(
            f"{model}: its preprocessing is inside the graph, which would change with it; "
            "expected a model without; export from the checkpoint with --embed-preprocessing"
        )
    if original.is_at(output):
        raise RequestError(
            f"-o {output}: would replace the {contract.precision} file that is read; name another output"
        )


def _write_onnx(
    plain: OnnxModel,
    network: OnnxModel,
    output: Path,
    check: Check,
    measure: Callable[[Path, Contract], Contract] | None,
) -> tuple[Checked | None, Contract]:
    """Writes `network`, which was made from `plain`; `measure` adds to its contract what is measured on the file."""
    with atomic(output) as beside:
        write_onnx(network, beside)
        try:
            found = check(beside, "cpu")
        except MissingDependency:
            if measure:
                raise
            return None, network.contract
        except ExportError as refusal:
            explained = check.explained(refusal, plain)
            if explained is refusal:
                raise
            raise explained from refusal
        contract = measure(beside, network.contract) if measure else network.contract
        write_onnx(replace(network, contract=contract, parity=found.parity), beside)
    return found, contract
