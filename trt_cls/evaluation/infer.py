"""Labels for images that have none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trt_cls.data.folder import Sample
from trt_cls.distributed.processes import ALONE, Processes
from trt_cls.engines.engine import Engine
from trt_cls.evaluation.answers import Executor
from trt_cls.evaluation.evaluate import Predictions, Progress, predict, unwatched


def infer(
    engine: Engine,
    images: Sequence[Path],
    *,
    batch_size: int,
    workers: int,
    executor: Executor = "auto",
    progress: Progress = unwatched,
    processes: Processes = ALONE,
) -> Predictions:
    """The answers of `engine` for `images`; those that can't be decoded are listed, not answered.

    `processes`, each with an engine, share `images`; all of them get the answers for all.

    Raises:
        DataError: no image can be decoded.
        DeviceError, MissingDependency, RequestError: `executor` "cuda" can't be.
        EngineError: the run failed, or its answers are no numbers.
    """
    samples = [Sample(path) for path in images]
    return predict(
        engine,
        samples,
        batch_size=batch_size,
        workers=workers,
        executor=executor,
        progress=progress,
        processes=processes,
    )
