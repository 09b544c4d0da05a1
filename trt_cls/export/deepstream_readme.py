"""The README in a folder for DeepStream: how to start it, and where its pixels differ from the training's."""

from __future__ import annotations

from trt_cls.artefacts.sidecar import Profile
from trt_cls.contract import Contract, Preprocessing
from trt_cls.engines.engine import INPUT
from trt_cls.preprocessing.pillow import MARGIN

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
