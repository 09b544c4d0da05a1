"""A folder for DeepStream: configuration of Gst-nvinfer, labels, model, and a README on how the answers differ.

nvinfer feeds a network with `net-scale-factor · (pixel − offset)`, float32, planes in the network's own order
(documentation of Gst-nvinfer; kernels in nvdsinfer_conversion.cu). Where one factor can't express the contract, the
normalization goes into the ONNX file, which then takes the pixels themselves. The texts are in `templates/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import read_onnx, write_onnx
from trt_cls.artefacts.sidecar import Profile
from trt_cls.contract import INPUT, OUTPUT, Contract, Precision, Preprocessing
from trt_cls.engines import open_engine
from trt_cls.errors import MissingDependency, RequestError
from trt_cls.export.embedding import embed_normalization
from trt_cls.export.parity import checked
from trt_cls.export.sample_images import images_for
from trt_cls.files import write_csv, write_text
from trt_cls.preprocessing.pillow import MARGIN
from trt_cls.serving.common import ServedPlan, check_servable, copy_plan, filled, render, safe_name

CONFIG, LABELS_TXT, README, THRESHOLDS = "nvinfer_config.txt", "labels.txt", "README.md", "thresholds.csv"
COLOR_FORMATS = {"rgb": 0, "bgr": 1, "gray": 2}
NETWORK_MODES: dict[Precision, int] = {"fp32": 0, "int8": 1, "fp16": 2}
SUPER_SAMPLING = 3
"""`scaling-filter` on a GPU. Simulated on 40 photographs of 500×375, an area average is 2.1 levels from Pillow's
antialiased resize to 64 pixels and 2.1 to 224, a bilinear filter 10.7 and 3.7."""

MOST_IMAGES = 1024
"""NVDSINFER_MAX_BATCH_SIZE of nvdsinfer_context.h: a larger `batch-size` is an error."""
FRAMES = ((1920, 1080), (1280, 720), (640, 480))
"""Width and height of the frames that the README gives a crop for."""


def write_deepstream(onnx_file: Path, plan: ServedPlan, folder: Path, say: Callable[[str], None]) -> None:
    """Fills `folder` with what Gst-nvinfer needs to classify as `onnx_file` does.

    Raises:
        RequestError: see `check_request`; or `folder` can't be written to.
        ExportError: the ONNX file with the normalization inside does not answer as `onnx_file` does.
    """
    contract = read_contract(onnx_file)
    check_request(contract, plan.profile)
    with filled(folder, last=CONFIG) as draft:
        reason = why_embedded(contract.preprocessing)
        model = _place_model(onnx_file, contract, draft, reason, say)
        if reason and plan.path:
            plan = replace(plan, path=None, why=f"{plan.path.name} takes normalized pixels")
        if plan.path:
            copy_plan(plan.path, model.with_suffix(".engine"))
        content = _content(contract, model, plan, reason)
        write_text(draft / LABELS_TXT, ";".join(contract.classes) + "\n")
        if contract.thresholds is not None:
            rows = zip(contract.classes, contract.thresholds, strict=True)
            write_csv(draft / THRESHOLDS, [("label", "threshold"), *rows])
        write_text(draft / README, render("deepstream_readme.md.j2", **content))
        write_text(draft / CONFIG, render("nvinfer_config.txt.j2", **content))
    say(f"wrote {folder / CONFIG} for {model.name}{f', which normalizes itself: {reason}' if reason else ''}")


def check_request(contract: Contract, profile: Profile) -> None:
    """Raises a RequestError where DeepStream can't run a model of this contract in these batches."""
    if contract.preprocessing.embedded:
        raise RequestError(
            "the file takes 8-bit pixels, and DeepStream gives float32; expected none with embedded preprocessing; "
            "leave --embed-preprocessing out: --deepstream puts into its own copy what nvinfer can't do"
        )
    if contract.precision == "fp8":
        raise RequestError(
            "the file computes in fp8, which nvinfer's network-mode does not have; expected fp32, fp16 or int8; "
            "export with --int8 or --fp16, or leave --deepstream out"
        )
    check_servable(contract.classes, profile, ";", "DeepStream")
    if profile.optimum > MOST_IMAGES:
        raise RequestError(
            f"--opt-batch {profile.optimum}: nvinfer takes up to {MOST_IMAGES} images at once; expected no more; "
            f"use --opt-batch {MOST_IMAGES}"
        )


def why_embedded(preprocessing: Preprocessing) -> str:
    """Why the normalization goes into the ONNX file; empty where one factor and an offset per channel express it."""
    if len(set(preprocessing.std)) == 1:
        return ""
    std = ", ".join(f"{value:g}" for value in preprocessing.std)
    return f"nvinfer has one net-scale-factor, and the channels of this network are divided by {std}"


def scale_and_offsets(preprocessing: Preprocessing) -> tuple[float, tuple[float, ...]]:
    """`net-scale-factor` and `offsets`: (x / divisor − mean) / std = (x − mean · divisor) / (divisor · std)."""
    divisor = preprocessing.divisor
    return 1 / (divisor * preprocessing.std[0]), tuple(mean * divisor for mean in preprocessing.mean)


def crop_in_frame(frame: tuple[int, int], pixels: Preprocessing) -> tuple[int, int, int, int]:
    """Left, top, width, height of what a center crop keeps of a frame (width, height); even, as in NV12.

    The aspect is the network's; the training rounds to whole pixels of its input, and is up to one of them off.
    """
    covering = pixels.width + MARGIN, pixels.height + MARGIN
    ratio = max(want / have for want, have in zip(covering, frame, strict=True))
    width, height = (2 * round(size / ratio / 2) for size in (pixels.width, pixels.height))
    return 2 * round((frame[0] - width) / 4), 2 * round((frame[1] - height) / 4), width, height


def _content(contract: Contract, model: Path, plan: ServedPlan, reason: str) -> dict[str, Any]:
    """What the templates are filled with; `reason`: why the file `model` normalizes inside, empty where it does not."""
    pixels = contract.preprocessing
    scale, offsets = (1.0, (0.0,) * pixels.channels) if reason else scale_and_offsets(pixels)
    crops = [(frame, crop_in_frame(frame, pixels)) for frame in FRAMES] if pixels.crop == "center" else []
    shape = "x".join(map(str, pixels.input_shape))
    batches = {"min": 1, "opt": plan.profile.optimum, "max": plan.profile.maximum}
    # nvinfer takes what is above its threshold, the contract's rule what is not below
    rejected = np.nextafter(np.float32(contract.reject.threshold), np.float32(0)) if contract.reject else 0.0
    own_engine = f"{model.name}_b{plan.profile.optimum}_gpu0_{contract.precision}.engine"  # nvinfer's name for it
    return {
        "config": CONFIG,
        "labels": LABELS_TXT,
        "thresholds": THRESHOLDS,
        "output": OUTPUT,
        "model": model.name,
        "engine": model.with_suffix(".engine").name if plan.path else own_engine,
        "plan": plan,
        "reason": reason,
        "contract": contract,
        "pixels": pixels,
        "network_mode": NETWORK_MODES[contract.precision],
        "color_format": COLOR_FORMATS[pixels.channel_order],
        "scale": scale,
        "offsets": offsets,
        "threshold": float(rejected),
        "scaling_filter": SUPER_SAMPLING,
        "covering": (pixels.width + MARGIN, pixels.height + MARGIN),
        "crops": crops,
        "stream_size": crops[0][1][2:] if crops else FRAMES[0],
        "shapes": " ".join(f"--{name}Shapes={INPUT}:{batch}x{shape}" for name, batch in batches.items()),
    }


def _place_model(onnx_file: Path, contract: Contract, folder: Path, reason: str, say: Callable[[str], None]) -> Path:
    """Copies the model into `folder`, with the normalization inside where there is a `reason` for that."""
    name = safe_name(onnx_file.stem)
    if not reason:
        return Path(shutil.copyfile(onnx_file, folder / f"{name}.onnx"))
    path, embedded = folder / f"{name}.pixels.onnx", embed_normalization(read_onnx(onnx_file))
    write_onnx(embedded, path)
    _check_embedded(path, embedded.contract, onnx_file, contract.preprocessing, say)
    return path


def _check_embedded(
    embedded: Path, contract: Contract, original: Path, pixels: Preprocessing, say: Callable[[str], None]
) -> None:
    """Holds the file that takes pixels against the one that takes them normalized, on random images."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (pixels.mean, pixels.std))
    images = images_for(contract.preprocessing, None)
    try:
        with closing(open_engine(embedded, "cpu")) as found, closing(open_engine(original, "cpu")) as expected:

            def reference(batch: NDArray[np.float32]) -> NDArray[np.float32]:
                return expected.infer((batch / np.float32(pixels.divisor) - mean) / std)

            checked(found.infer, reference, images, "fp32", thresholds=contract.thresholds)
    except MissingDependency as error:
        say(f"{embedded.name} was not run: {error}")
