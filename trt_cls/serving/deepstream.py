"""A classifier for DeepStream: configuration of Gst-nvinfer, labels, model, and a README that says what differs.

nvinfer feeds a network with `net-scale-factor · (pixel − offset)`, float32, planes in the network's own order
(documentation of Gst-nvinfer; kernels in nvdsinfer_conversion.cu). Where one factor can't express the contract, the
normalisation goes into the ONNX file, which then takes the pixels themselves.


The README in a folder for DeepStream: how to start it, and where its pixels differ from the training's.
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
from trt_cls.engines.engine import INPUT, OUTPUT, open_engine
from trt_cls.errors import MissingDependency, RequestError
from trt_cls.export.embedding import embed_normalization
from trt_cls.export.images import images_for
from trt_cls.export.onnx_file import read_onnx, write_onnx
from trt_cls.export.parity import checked
from trt_cls.files import write_text
from trt_cls.preprocessing.pillow import MARGIN
from trt_cls.serving.common import Plan, check_servable, copy_plan, filled, safe_name

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


FRAMES = ((1920, 1080), (1280, 720), (640, 480))
"""Width and height of the frames that the README gives a crop for."""


def readme(contract: Contract, model: str, engine: str, config: str, profile: Profile, reason: str) -> str:
    """Markdown for the folder that holds the ONNX file `model`.

    `engine` is the name that nvinfer looks for, `reason` why `model` normalizes inside; empty: it does not.
    """
    pixels = contract.preprocessing
    center = pixels.crop == "center"
    width, height = crop_in_frame(FRAMES[0], pixels)[2:] if center else FRAMES[0]
    return f"""\
# {model} in DeepStream

`{config}` is the configuration of Gst-nvinfer; its paths are relative to its own folder. Labels a video:

    gst-launch-1.0 nvstreammux name=mux batch-size=1 width={width} height={height} ! \\
      nvinfer config-file-path={config} ! nvvideoconvert ! nvdsosd ! nvvideoconvert ! autovideosink \\
      uridecodebin uri=file:///path/to/video.mp4 ! {_crop_element(pixels) if center else ""}mux.sink_0

With deepstream-app: `config-file={config}` in `[primary-gie]`.

## Engine

nvinfer loads `{engine}`, or else builds an engine from the ONNX file when it starts.
To build it yourself, on the GPU that will run it and with DeepStream's TensorRT:

    trtexec --stronglyTyped --onnx={model} --saveEngine={engine} \\
      {_shapes(pixels, profile)}
{_INT8 if contract.precision == "int8" else ""}
## What differs from the pixels of the training

- Size: {_size(pixels)}
- Filter: the network was trained on Pillow's antialiased {pixels.filter} resize. DeepStream has none;
  `scaling-filter=3` (super sampling, an average over the area) is the nearest for frames larger than the input,
  `1` (bilinear, without antialiasing) the one for smaller frames. nvstreammux resizes too, where its width and height
  are not the frame's: give it the frame's.
- Colour: {_color(pixels)}
- Normalization: none. {_normalization(reason)}

How much this costs is measured by labelling the same frames with `trt-cls infer`.
"""


_INT8 = """
The file holds its own quantization (Q/DQ). nvinfer asks for a calibration table before it builds with
`network-mode=1`, and builds FP16 without one, which TensorRT 10 refuses for such a file: build the engine with trtexec.
"""


def crop_in_frame(frame: tuple[int, int], pixels: Preprocessing) -> tuple[int, int, int, int]:
    """Left, top, width, height of what a center crop keeps of a frame (width, height); even, as in NV12.

    The aspect is the network's; the training rounds to whole pixels of its input, and is up to one of them off.
    """
    covering = pixels.width + MARGIN, pixels.height + MARGIN
    ratio = max(want / have for want, have in zip(covering, frame, strict=True))
    width, height = (2 * round(size / ratio / 2) for size in (pixels.width, pixels.height))
    return 2 * round((frame[0] - width) / 4), 2 * round((frame[1] - height) / 4), width, height


def _crop_element(pixels: Preprocessing) -> str:
    left, top, width, height = crop_in_frame(FRAMES[0], pixels)
    caps = f"'video/x-raw(memory:NVMM),width={width},height={height}'"
    return f"\\\n      nvvideoconvert src-crop={left}:{top}:{width}:{height} ! {caps} ! "


def _normalization(reason: str) -> str:
    if reason:
        return f"It stands in the ONNX file, which takes pixels from 0 to 255: {reason}."
    return "`net-scale-factor` and `offsets` are computed from the model's own numbers."


def _shapes(pixels: Preprocessing, profile: Profile) -> str:
    shape = "x".join(map(str, pixels.input_shape))
    batches = zip(("min", "opt", "max"), (1, profile.optimum, profile.maximum), strict=True)
    return " ".join(f"--{name}Shapes={INPUT}:{batch}x{shape}" for name, batch in batches)


def _size(pixels: Preprocessing) -> str:
    if pixels.crop == "none":
        return f"the whole frame is stretched to {pixels.width}×{pixels.height}, as in the training."
    table = "\n".join(
        f"  | {width}×{height} | {':'.join(map(str, crop_in_frame((width, height), pixels)))} |"
        for width, height in FRAMES
    )
    return f"""\
the network was trained on the middle of the image ({pixels.width}×{pixels.height} of one that covers
  {pixels.width + MARGIN}×{pixels.height + MARGIN}). nvinfer can't crop: `nvvideoconvert` does it before nvstreammux, \
as above.
  The same width and height go into the caps and into nvstreammux. Without the crop, the whole frame is scaled down with
  its aspect kept and black bars on two sides: objects are then smaller than in the training.

  | frame | src-crop |
  |---|---|
{table}
"""


def _color(pixels: Preprocessing) -> str:
    if pixels.channel_order == "gray":
        return (
            "nvinfer takes a decoder's luma plane for grey. In video of limited range it runs from 16 to 235;\n"
            "  the network was trained on 0 to 255."
        )
    return (
        "a decoder gives NV12, whose colour has half the resolution, and nvinfer converts it to RGB with rounding of\n"
        "  its own."
    )
