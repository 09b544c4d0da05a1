"""A model file as a classifier: images of any kind in, labels or probabilities out, numpy on both sides.

Does not know: folders, labels and files of results (`evaluation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_cls.contract import Contract
from trt_cls.engines.backends import Provider, open_engine
from trt_cls.engines.engine import Engine
from trt_cls.errors import DataError
from trt_cls.preprocessing.cpu import preprocess
from trt_cls.preprocessing.images import eight_bit, read
from trt_cls.preprocessing.pillow import hwc

OneImage: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]
Images: TypeAlias = OneImage | Sequence[OneImage] | NDArray[Any]
"""What a classifier takes: one image or several, as paths, Pillow images or uint8 arrays (RGB [H, W, 3], gray [H, W] or
[H, W, 1], or a batch [N, H, W, C]); or a batch that is already preprocessed, float32 [N, C, H, W]."""

BATCH_SIZE = 32
"""Images that are preprocessed and run at once; bounds the memory."""


class Classifier:
    """An opened model; a context manager."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def contract(self) -> Contract:
        """What the network expects and what its answers mean."""
        return self._engine.contract

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by output index."""
        return self.contract.classes

    def predict(self, images: Images) -> NDArray[Any]:
        """The likeliest class of each image, as indices int64 [n] into `classes`; see `predict_proba`.

        Of a multi-label model, which labels each image has, bool [n, classes].
        """
        probabilities = self.predict_proba(images)
        if self.contract.thresholds is not None:
            given: NDArray[np.bool_] = probabilities >= np.array(self.contract.thresholds, np.float64)
            return given
        best: NDArray[np.int64] = probabilities.argmax(axis=1)
        return best

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities [n, classes]; one image counts as a batch of one.

        Raises:
            DataError: an image can't be decoded or is of a kind or shape that is not taken.
        """
        none = np.empty((0, len(self.classes)), np.float32)
        return np.concatenate([none, *(self._engine.infer(batch) for batch in self._batches(images))])

    def close(self) -> None:
        """Frees memory and device; the classifier can't be used after it."""
        self._engine.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _batches(self, images: Images) -> Iterator[NDArray[np.float32]]:
        if isinstance(images, np.ndarray) and images.dtype == np.float32:
            ready: NDArray[Any] = images
            yield from (ready[start : start + BATCH_SIZE] for start in range(0, len(ready), BATCH_SIZE))
            return
        several = _as_sequence(images)
        for start in range(0, len(several), BATCH_SIZE):
            yield np.stack([self._preprocess(image) for image in several[start : start + BATCH_SIZE]])

    def _preprocess(self, image: OneImage) -> NDArray[np.float32]:
        preprocessing = self.contract.preprocessing
        if isinstance(image, str | Path):
            pixels = read(Path(image), preprocessing.channels)
        else:
            picture = image if isinstance(image, Image.Image) else _picture(image)
            pixels = hwc(eight_bit(picture, preprocessing.channels))
        return preprocess(pixels, preprocessing)


def load_classifier(path: str | Path, provider: Provider = "auto") -> Classifier:
    """Opens a `.safetensors`, `.onnx`, `.engine` or `.plan` file.

    Raises:
        ArtefactError: the file is missing, damaged, or not of trt-cls.
        DeviceError: `provider` is not available on this machine.
        MissingDependency: the backend is not installed.
        RequestError: `provider` is unknown, or does not run files of this kind.
    """
    return Classifier(open_engine(Path(path), provider))


def _as_sequence(images: Images) -> Sequence[OneImage] | NDArray[Any]:
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim < 4:
        return [images]
    return images


def _picture(pixels: Any) -> Image.Image:
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.size:
        if pixels.ndim == 2:
            return Image.fromarray(pixels)
        if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
            return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    found = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
    raise DataError(
        f"an image given as {found} is not taken; expected a path, a Pillow image, a uint8 array [H, W, 3], [H, W] or "
        "[H, W, 1], or a preprocessed float32 batch [N, C, H, W]"
    )
