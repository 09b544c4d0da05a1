"""How long networks take for one image in ONNX Runtime on this CPU, measured in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trt_cls.artefacts.onnx_file import write_onnx
from trt_cls.engines import open_engine
from trt_cls.errors import require
from trt_cls.export.onnx_file import onnx_from_module

if TYPE_CHECKING:
    from torch import nn

    from trt_cls.contract import Contract

SECONDS = 2.0
"""For all rounds together."""
LEAST, MOST = 5, 200
"""Rounds that are measured."""


def latencies(modules: Sequence[nn.Module], contract: Contract) -> list[float]:
    """Median seconds of a batch of one, for each of `modules`, which all have the same contract.

    Raises:
        MissingDependency: ONNX Runtime, or what writes ONNX, is not installed.
    """
    require("onnxruntime", "measuring the latency", "cpu")  # before the files are written, which takes seconds
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.onnx" for number in range(len(modules))]
        for path, module in zip(paths, modules, strict=True):
            write_onnx(onnx_from_module(module, contract), path)
        return latencies_of_files(paths)


def latencies_of_files(paths: Sequence[Path]) -> list[float]:
    """Median seconds of a batch of one, for each of the ONNX files, which all take the same images.

    Each round runs all of them, so that a machine whose speed drifts does so for all; the first warms up.
    """
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(open_engine(path, "cpu"))) for path in paths]
        shape = engines[0].contract.preprocessing.input_shape
        images = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
        rounds: list[list[float]] = []
        start = time.perf_counter()
        while len(rounds) <= LEAST or (len(rounds) <= MOST and time.perf_counter() - start < SECONDS):
            seconds = []
            for engine in engines:
                before = time.perf_counter()
                engine.infer(images)
                seconds.append(time.perf_counter() - before)
            rounds.append(seconds)
    return [statistics.median(column) for column in zip(*rounds[1:], strict=True)]
