"""What every engine does, and which one opens a file.

What is not known here: images and files of results; an engine takes preprocessed batches and gives probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.model_file import check_model_file
from trt_cls.contract import Contract, Preprocessing
from trt_cls.errors import ArtefactError, EngineError, RequestError
from trt_cls.preprocessing.pillow import normalize

Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
PROVIDERS: tuple[Provider, ...] = ("auto", "cpu", "cuda", "tensorrt", "openvino")

INPUT, OUTPUT = "input_1", "predictions"
"""Names of the input and the output in every ONNX file and engine."""


class Engine(Protocol):
    """An opened model; not to be used from two threads at once."""

    contract: Contract
    backend: str
    """What runs it, such as "onnxruntime-cpu"."""

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities [n, classes] of preprocessed images [n, C, H, W].

        Where the contract says that normalization is inside the graph, they are uint8 [n, H, W, C].

        Raises:
            EngineError: the shape is not the contract's, or the run failed.
        """

    def close(self) -> None:
        """Frees memory and device; the engine can't be used after it."""


def open_engine(path: Path, provider: Provider = "auto", threads: int | None = None) -> Engine:
    """Opens a `.onnx`, `.safetensors`, `.engine` or `.plan` file.

    `threads` limits the CPU threads of a run; None leaves the choice to the backend.

    Raises:
        ArtefactError: the file is missing, damaged, or not of trt-cls.
        DeviceError: `provider` is not available on this machine.
        MissingDependency: the backend is not installed.
    """
    check_model_file(path)
    if path.suffix == ".onnx" and provider == "openvino":
        from trt_cls.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(path, threads)
    if path.suffix == ".onnx":
        from trt_cls.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(path, provider, threads)
    if path.suffix == ".safetensors":
        from trt_cls.engines.torch import TorchEngine

        if provider in ("tensorrt", "openvino"):
            raise RequestError(
                f"{path}: a checkpoint runs on torch alone, and --provider {provider} was given; expected auto, cpu or "
                "cuda; make another file of it first: trt-cls export -m CHECKPOINT -o FILE.onnx --engine FILE.engine"
            )
        return TorchEngine(path, provider, threads)
    from trt_cls.engines.tensorrt.engine import TensorRtEngine

    if provider in ("cpu", "openvino"):
        raise RequestError(
            f"{path}: a TensorRT engine does not run on the CPU; expected --provider auto, cuda or tensorrt; "
            "name the ONNX file that it was built from to run on the CPU"
        )
    return TensorRtEngine(path)


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
