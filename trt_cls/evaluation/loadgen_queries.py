"""Answers to images by their number, again and again: from tensors that were prepared once, or from their files.

Does not know: who asks, see `loadgen`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_cls.data.folder import Sample
from trt_cls.data.stream import decoded, stream
from trt_cls.engines.engine import Engine
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.engines.tensorrt.pipeline import Lane, answers_on_device
from trt_cls.errors import DataError
from trt_cls.evaluation.inference import Executor, answers, nothing_decoded, open_kernel
from trt_cls.preprocessing.cuda import CudaPreprocessing

MOST_IMAGES = 256
"""Images that are taken: their tensors are 150 MB at 224×224."""


@dataclass(frozen=True)
class Queries:
    """Images that can be asked for."""

    engine: Engine
    samples: Sequence[Sample]
    """All of them can be decoded."""
    tensors: Any
    """Prepared images [n,C,H,W]; None: each query reads their files."""
    batch_size: int
    workers: int
    lane: Lane | None
    """Of a GPU that preprocesses."""
    kernel: CudaPreprocessing | None

    def run(self, indices: Sequence[int]) -> Iterator[int]:
        """Answers these images, in order; yields how many more are answered.

        Raises:
            DataError: a file can no longer be decoded.
            EngineError: the run failed.
        """
        if self.tensors is not None:
            for start in range(0, len(indices), self.batch_size):
                yield len(self.engine.infer(self.tensors[list(indices[start : start + self.batch_size])]))
            return
        for batch in self._from_files([self.samples[index] for index in indices]):
            if batch.skipped:
                lost = batch.skipped[0]
                raise DataError(f"{lost.path}: {lost.reason}, as it was before; expected files that stay; start again")
            yield len(batch.samples)

    def _from_files(self, asked: Sequence[Sample]) -> Iterable[Any]:
        how = {"batch_size": self.batch_size, "workers": self.workers if len(asked) > 1 else 0}
        if self.lane is None or self.kernel is None or not isinstance(self.engine, TensorRtEngine):
            return answers(self.engine, asked, **how, executor="cpu")
        if len(asked) > self.batch_size:
            return answers_on_device(self.engine, self.kernel, asked, **how)
        return self._through(self.engine, self.lane, asked, how)

    def _through(self, engine: TensorRtEngine, lane: Lane, asked: Sequence[Sample], how: Any) -> Iterable[Any]:
        for batch in decoded(asked, engine.contract.preprocessing, **how):
            with engine.current():
                lane.prepare(batch.images)
                lane.run()
                lane.finish()
            yield batch


@contextmanager
def opened_queries(
    engine: Engine, samples: Sequence[Sample], *, tensors: bool, batch_size: int, workers: int, executor: Executor
) -> Iterator[Queries]:
    """The first of `samples` that can be decoded, asked for as prepared `tensors` or as files.

    Raises:
        DataError: none can be decoded.
        DeviceError, MissingDependency, RequestError: `executor` is "cuda", which is not possible.
    """
    if isinstance(engine, TensorRtEngine):
        batch_size = min(batch_size, engine.largest)
    batches = list(stream(samples[:MOST_IMAGES], engine.contract.preprocessing, batch_size=batch_size, workers=workers))
    kept = [sample for batch in batches for sample in batch.samples]
    if not kept:
        raise nothing_decoded([image for batch in batches for image in batch.skipped], "name a folder")
    prepared = np.concatenate([batch.images for batch in batches]) if tensors else None
    with ExitStack() as stack:
        kernel, lane = None if tensors else open_kernel(engine, executor), None
        if kernel is not None and isinstance(engine, TensorRtEngine):
            stack.enter_context(closing(kernel))
            with engine.current():
                lane = Lane(engine, kernel)
            stack.callback(_close, engine, lane)
        yield Queries(engine, kept, prepared, batch_size, workers, lane, kernel)


def _close(engine: TensorRtEngine, lane: Lane) -> None:
    with engine.current():
        lane.close()
