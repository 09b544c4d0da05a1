"""What every engine does: preprocessed batches in, probabilities out; and the checks that all of them share.

Does not know: which engine opens a file, see `backends`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from trt_cls.contract import INPUT, OUTPUT, Contract, Preprocessing
from trt_cls.errors import ArtefactError, EngineError
from trt_cls.preprocessing.pillow import normalize

if TYPE_CHECKING:
    from trt_cls.data.folder import Sample
    from trt_cls.data.stream import Skipped


@dataclass(frozen=True)
class Answered:
    """A batch of images with their probabilities [n,classes], n samples, and what was skipped among them."""

    samples: tuple[Sample, ...]
    probabilities: NDArray[np.float32]
    skipped: tuple[Skipped, ...]
    waited: float
    """Seconds in which nothing could be started because no images were ready."""


class Engine(Protocol):
    """An opened model; not to be used from two threads at once.

    Its class is called with the file's path, the provider and the number of CPU threads, see `backends.open_engine`.
    """

    contract: Contract
    backend: str
    """What runs it, such as "onnxruntime-cpu"."""

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities [n, classes] of preprocessed images [n, C, H, W].

        Where the contract says that normalization is inside the graph, they are uint8 [n, H, W, C].

        Raises:
            EngineError: the shape is not the contract's, the run failed, or the engine is closed.
        """

    def close(self) -> None:
        """Frees memory and device; a second call does nothing."""


def closed(backend: str) -> EngineError:
    """What `infer` raises after `close`."""
    return EngineError(f"{backend}: the engine is closed; open it again")


def infer_fed(engine: Engine, fed: Preprocessing) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """`engine.infer` for images as `fed` describes them: they may be pixels, which it takes normalized."""
    own = engine.contract.preprocessing
    if own.embedded == fed.embedded:
        return engine.infer
    return lambda pixels: engine.infer(np.stack([normalize(image, own) for image in pixels]))


def check_images(images: NDArray[np.float32], contract: Contract) -> None:
    """Refuses a batch that the network was not made for.

    Raises:
        EngineError: the type or the shape is not the contract's, with n ≥ 1.
    """
    expected, element = contract.preprocessing.input_shape, contract.preprocessing.input_type
    if images.dtype != element or images.ndim != 4 or images.shape[1:] != expected or len(images) == 0:
        raise EngineError(
            f"a batch of {images.dtype} {list(images.shape)}; expected {element} {['n', *expected]} with n ≥ 1; "
            "preprocess the images as the contract says, or pass them as uint8 to a Classifier"
        )


def check_signature(
    path: Path, contract: Contract, inputs: dict[str, list[int]], outputs: dict[str, list[int]]
) -> None:
    """Refuses a file whose inputs and outputs (shapes without the batch, by name) are not what its contract says.

    Raises:
        ArtefactError: they differ.
    """
    expected = {INPUT: list(contract.preprocessing.input_shape)}, {OUTPUT: [len(contract.classes)]}
    if (inputs, outputs) != expected:
        raise ArtefactError(
            f"{path}: its inputs are {inputs} and its outputs {outputs}; expected {expected[0]} and {expected[1]} "
            "as its contract says; export it again with trt-cls export"
        )
