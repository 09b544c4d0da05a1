"""Predictions for the frames of a video or a camera, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_cls.engines.engine import Engine
from trt_cls.errors import DataError, DeviceError, require
from trt_cls.evaluation.metrics import Probabilities
from trt_cls.preprocessing import cpu, pillow
from trt_cls.preprocessing.images import eight_bit

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
"""Suffixes of videos, in lower case."""

Frame = NDArray[np.uint8]
"""RGB pixels [H,W,3]."""


def infer_frames(engine: Engine, frames: Iterator[Frame], batch_size: int) -> Iterator[Probabilities]:
    """The probabilities [n,classes] of the frames in order, `batch_size` of them at a time.

    Raises:
        EngineError: the run failed.
    """
    preprocessing = engine.contract.preprocessing
    batch: list[NDArray[np.float32]] = []
    for frame in frames:
        pixels = pillow.hwc(eight_bit(Image.fromarray(frame), preprocessing.channels))
        batch.append(cpu.preprocess(pixels, preprocessing))
        if len(batch) == batch_size:
            yield engine.infer(np.stack(batch))
            batch.clear()
    if batch:
        yield engine.infer(np.stack(batch))


def frames(source: Path | int) -> Iterator[Frame]:
    """The frames of a video file, or of the camera with this number until the caller stops.

    Raises:
        DataError: the file is missing, or no frame of it can be decoded.
        DeviceError: there is no such camera.
        MissingDependency: OpenCV is not installed.
    """
    cv2 = _import_opencv()
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{source}: no such file; expected a video")
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    seen = False
    try:
        while (answer := capture.read())[0]:
            seen = True
            yield np.ascontiguousarray(answer[1][:, :, ::-1])
    finally:
        capture.release()
    if not seen:
        raise _nothing(source)


def count_frames(path: Path) -> int:
    """The number of frames in the header of a video file; 0 if unknown."""
    cv2 = _import_opencv()
    capture = cv2.VideoCapture(str(path))
    try:
        return max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    finally:
        capture.release()


def _nothing(source: Path | int) -> DataError | DeviceError:
    if isinstance(source, int):
        return DeviceError(f"camera {source} gives no image; expected one that is free; name another: camera:NUMBER")
    return DataError(f"{source}: no frame can be decoded; expected a video that OpenCV reads; convert it to H.264 MP4")


def _import_opencv() -> ModuleType:
    return require("cv2", "reading a video", "video", package="opencv-python-headless")
