"""A classifier for DeepStream: configuration of Gst-nvinfer, labels, model, and a README that says what differs.

nvinfer feeds a network with `net-scale-factor · (pixel − offset)`, float32, planes in the network's own order
(documentation of Gst-nvinfer; kernels in nvdsinfer_conversion.cu). Where one factor can't express the contract, the
normalisation goes into the ONNX file, which then takes the pixels themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.sidecar import Profile
from trt_cls.contract import Contract, Precision, Preprocessing
from trt_cls.engines.engine import OUTPUT, open_engine
from trt_cls.errors import MissingDependency, RequestError
from trt_cls.export.deepstream_readme import readme
from trt_cls.export.embedding import embed_normalization
from trt_cls.export.handover import Plan, check_servable, copy_plan, filled, safe_name
from trt_cls.export.images import images_for
from trt_cls.export.onnx_file import read_onnx, write_onnx
from trt_cls.export.parity import checked
from trt_cls.files import write_text

CONFIG, LABELS, README = "nvinfer_config.txt", "labels.txt", "README.md"
COLOR_FORMATS = {"rgb": 0, "bgr": 1, "gray": 2}
NETWORK_MODES: dict[Precision, int] = {"fp32": 0, "int8": 1, "fp16": 2}
SUPER_SAMPLING = 3
"""`scaling-filter` on a GPU. Simulated on 40 photographs of 500×375, an area average is 2.1 levels from Pillow's
antialiased resize to 64 pixels and 2.1 to 224, a bilinear filter 10.7 and 3.7."""

MOST_IMAGES = 1024
"""NVDSINFER_MAX_BATCH_SIZE of nvdsinfer_context.h: a larger `batch-size` is an error."""

Settings = dict[str, tuple[object, str]]
"""Key → value and the remark above it (empty: none), in the order of the file."""


def write_deepstream(onnx_file: Path, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
    """Fills `folder` with what Gst-nvinfer needs to classify as `onnx_file` does.

    Raises:
        RequestError: see `check_request`; or `folder` can't be written to.
        ExportError: the ONNX file with the normalisation inside does not answer as `onnx_file` does.
    """
    contract = read_contract(onnx_file)
    check_request(contract, plan.profile)
    with filled(folder, last=CONFIG) as draft:
        reason = "" if expressible(contract.preprocessing) else why_embedded(contract.preprocessing)
        model = _place_model(onnx_file, contract, draft, embed=bool(reason), say=say)
        if reason and plan.path:
            plan = replace(plan, path=None, why=f"{plan.path.name} takes normalized pixels")
        engine = ""
        if plan.path:
            engine = model.with_suffix(".engine").name
            copy_plan(plan.path, draft / engine)
        settings = nvinfer_settings(read_contract(model), model.name, engine, plan, reason)
        looked_for = str(settings["model-engine-file"][0])
        write_text(draft / LABELS, ";".join(contract.classes) + "\n")
        write_text(draft / README, readme(contract, model.name, looked_for, CONFIG, plan.profile, reason))
        write_text(draft / CONFIG, _text(settings))
    say(f"wrote {folder / CONFIG} for {model.name}{f', which normalizes itself: {reason}' if reason else ''}")


def check_request(contract: Contract, profile: Profile) -> None:
    """Raises a RequestError where DeepStream can't run a model of this contract in these batches."""
    if contract.preprocessing.embedded:
        raise RequestError(
            "the file takes 8-bit pixels, and DeepStream gives float32; expected none with embedded preprocessing; "
            "leave --embed-preprocessing out: --deepstream puts into its own copy what nvinfer can't do"
        )
    check_servable(contract.classes, profile, ";", "DeepStream")
    if profile.optimum > MOST_IMAGES:
        raise RequestError(
            f"--opt-batch {profile.optimum}: nvinfer takes up to {MOST_IMAGES} images at once; expected no more; "
            f"use --opt-batch {MOST_IMAGES}"
        )


def _place_model(onnx_file: Path, contract: Contract, folder: Path, *, embed: bool, say: Callable[[str], None]) -> Path:
    name = safe_name(onnx_file.stem)
    if not embed:
        return Path(shutil.copyfile(onnx_file, folder / f"{name}.onnx"))
    model = folder / f"{name}.pixels.onnx"
    write_onnx(embed_normalization(read_onnx(onnx_file)), model)
    _check_embedded(model, onnx_file, contract.preprocessing, say)
    return model


def expressible(preprocessing: Preprocessing) -> bool:
    """Whether one factor and an offset per channel say it all."""
    return len(set(preprocessing.std)) == 1


def why_embedded(preprocessing: Preprocessing) -> str:
    """Why the normalisation went into the ONNX file."""
    std = ", ".join(f"{value:g}" for value in preprocessing.std)
    return f"nvinfer has one net-scale-factor, and the channels of this network are divided by {std}"


def scale_and_offsets(preprocessing: Preprocessing) -> tuple[float, tuple[float, ...]]:
    """`net-scale-factor` and `offsets`: (x / divisor − mean) / std = (x − mean · divisor) / (divisor · std)."""
    divisor = preprocessing.divisor
    return 1 / (divisor * preprocessing.std[0]), tuple(mean * divisor for mean in preprocessing.mean)


def nvinfer_settings(contract: Contract, model: str, engine: str, plan: Plan, reason: str) -> Settings:
    """The group [property] for the ONNX file `model`; `engine` is the plan beside it, or empty."""
    pixels = contract.preprocessing
    scale, offsets = scale_and_offsets(pixels)
    batch = plan.profile.optimum
    own_engine = f"{model}_b{batch}_gpu0_{contract.precision}.engine"
    aspect = int(pixels.crop == "center")
    return {
        "gpu-id": (0, ""),
        "gie-unique-id": (1, ""),
        "onnx-file": (model, f"Takes pixels and normalizes them itself: {reason}." if reason else ""),
        "model-engine-file": (
            engine or own_engine,
            f"{plan.why}."
            if engine
            else f"The name that nvinfer gives the engine that it builds. None is here: {plan.why}.",
        ),
        "network-mode": (NETWORK_MODES[contract.precision], "0: FP32, 1: INT8, 2: FP16; the ONNX file decides."),
        "batch-size": (
            batch,
            f"The number of streams; the engine takes 1 to {plan.profile.maximum}."
            if engine
            else "The number of streams; nvinfer's engine is built for it, and has it in its name.",
        ),
        "infer-dims": (";".join(map(str, pixels.input_shape)), "Channels, height, width."),
        "network-input-order": (0, "NCHW"),
        "model-color-format": (COLOR_FORMATS[pixels.channel_order], "0: RGB, 1: BGR, 2: GRAY."),
        "net-scale-factor": (repr(scale), "y = net-scale-factor * (x - offset)"),
        "offsets": (";".join(map(repr, offsets)), ""),
        "maintain-aspect-ratio": (aspect, "See README.md for what differs from the pixels of the training."),
        "symmetric-padding": (aspect, ""),
        "scaling-compute-hw": (1, "The GPU, on Jetson too: its VIC has other filters."),
        "scaling-filter": (
            SUPER_SAMPLING,
            "Super sampling, for frames larger than the input; 1, bilinear, for smaller.",
        ),
        "network-type": (1, "Classifier."),
        "output-blob-names": (OUTPUT, ""),
        "labelfile-path": (LABELS, ""),
        "classifier-threshold": (0.0, "Every frame gets its likeliest class."),
        "process-mode": (1, "Whole frames. For the objects of a detector: 2, and operate-on-gie-id."),
    }


def _text(settings: Settings) -> str:
    return "\n".join(["[property]", *_lines(settings)]) + "\n"


def _lines(settings: Settings) -> Iterator[str]:
    for key, (value, remark) in settings.items():
        if remark:
            yield f"# {remark}"
        yield f"{key}={value}"


def _check_embedded(embedded: Path, original: Path, pixels: Preprocessing, say: Callable[[str], None]) -> None:
    """Holds the file that takes pixels against the one that takes them normalised, on random images."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (pixels.mean, pixels.std))
    images = images_for(read_contract(embedded).preprocessing, None)
    try:
        with closing(open_engine(embedded, "cpu")) as found, closing(open_engine(original, "cpu")) as expected:

            def reference(batch: NDArray[np.float32]) -> NDArray[np.float32]:
                return expected.infer((batch / np.float32(pixels.divisor) - mean) / std)

            checked(found.infer, reference, images, "fp32")
    except MissingDependency as error:
        say(f"{embedded.name} was not run: {error}")
