"""Runs any engine on image files, preprocessed on the CPU or the GPU; checks that spec, class map and model agree.

`WithFlips` is test-time augmentation. Does not know: true labels and result files.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.classmap import read_classmap
from trt_cls.contract import Contract
from trt_cls.data.folder import Sample
from trt_cls.data.stream import Skipped, stream
from trt_cls.engines.engine import Answered, Engine
from trt_cls.errors import ArtefactError, DataError, DeviceError, EngineError, MissingDependency, RequestError
from trt_cls.preprocessing.description import require_spec_fits
from trt_cls.text import lookalikes

if TYPE_CHECKING:
    from trt_cls.engines.tensorrt.engine import TensorRtEngine
    from trt_cls.preprocessing.cuda import CudaPreprocessing
    from trt_cls.spec.experiment import Experiment

Executor = Literal["auto", "cpu", "cuda"]
"""What preprocesses the images; "auto": the GPU for a TensorRT engine if possible, else the CPU."""

_log = logging.getLogger(__name__)


def answers(
    engine: Engine, samples: Sequence[Sample], *, batch_size: int, workers: int, executor: Executor = "auto"
) -> Generator[Answered]:
    """The probabilities of all `samples` in batches, in order; close it if it is not read to its end.

    Raises:
        DeviceError, MissingDependency: `executor` is "cuda", which is not possible.
        EngineError: the run failed, or a probability is NaN or infinite.
        RequestError: `executor` is "cuda" and `engine` is not a TensorRT engine.
    """
    kernel = open_kernel(engine, executor)
    if kernel is None or not _is_tensorrt(engine):
        yield from (_finite(engine, answered) for answered in _on_host(engine, samples, batch_size, workers))
        return
    from trt_cls.engines.tensorrt.pipeline import answers_on_device

    with (
        closing(kernel),
        closing(answers_on_device(engine, kernel, samples, batch_size=batch_size, workers=workers)) as found,
    ):
        yield from (_finite(engine, answered) for answered in found)


def open_kernel(engine: Engine, executor: Executor) -> CudaPreprocessing | None:
    """The kernel that preprocesses images for `engine`, to be closed; None: the CPU does.

    Raises:
        DeviceError, MissingDependency, RequestError: as `answers`.
    """
    if not _is_tensorrt(engine):
        if executor == "cuda":
            raise RequestError(
                f"--executor cuda: the model runs on {engine.backend}, which takes its input from the CPU; expected a "
                "TensorRT engine; name a .engine file, or use --executor cpu"
            )
        return None
    if executor == "cpu":
        return None
    from trt_cls.preprocessing.cuda import CudaPreprocessing

    try:
        return CudaPreprocessing(engine.contract.preprocessing)
    except (DeviceError, MissingDependency) as error:
        if executor == "cuda":
            raise
        _log.warning("images are prepared on the CPU, with the same result: %s", error)
        return None


def _is_tensorrt(engine: Engine) -> TypeGuard[TensorRtEngine]:
    """Whether it is a TensorRT engine; modules for the GPU, which other engines do without, are not imported."""
    module = sys.modules.get("trt_cls.engines.tensorrt.engine")
    return module is not None and isinstance(engine, module.TensorRtEngine)


def _on_host(engine: Engine, samples: Sequence[Sample], batch_size: int, workers: int) -> Iterator[Answered]:
    none = np.empty((0, len(engine.contract.classes)), np.float32)
    before = time.perf_counter()
    for batch in stream(samples, engine.contract.preprocessing, batch_size=batch_size, workers=workers):
        waited = time.perf_counter() - before
        probabilities = engine.infer(batch.images) if batch.samples else none
        yield Answered(batch.samples, probabilities, batch.skipped, waited)
        before = time.perf_counter()


def nothing_decoded(skipped: Sequence[Skipped], advice: str) -> DataError:
    """The error where all images were `skipped`."""
    first = f", the first is {skipped[0].path}: {skipped[0].reason}" if skipped else ""
    return DataError(f"none of {len(skipped)} images can be decoded{first}; expected image files; {advice}")


def _finite(engine: Engine, answered: Answered) -> Answered:
    if not np.isfinite(answered.probabilities).all():
        raise EngineError(
            f"{engine.backend}: its answers hold NaN or infinity; expected probabilities; the "
            f"{engine.contract.precision} model overflows: evaluate the checkpoint that it came from, "
            "then export that with another precision"
        )
    return answered


def checked_contract(
    model: Path, experiment: Experiment | None, spec: Path | None, classmap: Path | None = None
) -> Contract:
    """The contract of `model`, after the check that the spec and the class map, if given, agree with it.

    Raises:
        ArtefactError, DataError: the file can't be read, or they disagree.
    """
    from trt_cls.artefacts.model_file import read_contract  # loads ONNX, which running an engine does not need

    contract = read_contract(model)
    if experiment and spec:
        require_spec_fits(experiment, spec, contract, model)
    if classmap:
        _require_classmap_fits(classmap, contract, model)
    return contract


def _require_classmap_fits(classmap: Path, contract: Contract, model: Path) -> None:
    """Refuses a class map with other names or another order of classes than the model's.

    Raises:
        ArtefactError: they disagree.
        DataError: the class map can't be read.
    """
    names = read_classmap(classmap)
    if names != contract.classes:
        raise ArtefactError(
            f"{classmap} and {model} disagree on the classes: {list(names)} in the class map, {list(contract.classes)} "
            f"in the model{lookalikes(names, contract.classes)}; expected the class map of the training; leave it out, "
            "the model carries its own classes"
        )


class WithFlips:
    """An engine whose answers are the mean over each image and its mirror image; takes twice the time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.contract = engine.contract
        self.backend = f"{engine.backend} + flips"

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean of both probabilities, [n, classes]."""
        across = 2 if self.contract.preprocessing.embedded else 3
        mirrored = np.ascontiguousarray(np.flip(images, across))
        return (self._engine.infer(images) + self._engine.infer(mirrored)) / np.float32(2)

    def close(self) -> None:
        """Closes the engine."""
        self._engine.close()
