"""ONNX files run by OpenVINO on the CPU, which runs INT8 files there several times faster than ONNX Runtime does.

OpenVINO computes in bfloat16 by default where the processor has it. Here it computes in float32 all that the file does
not say to be INT8: the answers are then those of the file, float16 files' included, and INT8 files lose no speed.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import require_own_weights
from trt_cls.engines.engine import INPUT, OUTPUT, check_images, check_signature
from trt_cls.errors import ArtefactError, EngineError, one_line, require

DEVICE = "CPU"
SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    # One batch at a time on all cores. OpenVINO's other hint, THROUGHPUT, gives each of several requests some of the
    # cores: a single batch then ran a quarter slower.
    "PERFORMANCE_HINT": "LATENCY",
}


class OpenVinoEngine:
    """An ONNX file compiled by OpenVINO for this CPU."""

    backend = "openvino-cpu"

    def __init__(self, path: Path, threads: int | None) -> None:
        self.contract = read_contract(path)
        require_own_weights(path)
        openvino = _import_openvino()
        settings: dict[str, Any] = dict(SETTINGS)
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            model = core.read_model(path)
            self._compiled = core.compile_model(model, DEVICE, settings)
        except RuntimeError as error:
            raise ArtefactError(
                f"{path}: OpenVINO {openvino.__version__} can't load it ({one_line(error)}); "
                "expected a file written by trt-cls export; copy it or export it again"
            ) from error
        check_signature(path, self.contract, _shapes(self._compiled.inputs), _shapes(self._compiled.outputs))
        self._request = self._compiled.create_infer_request()

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.infer`."""
        check_images(images, self.contract)
        try:
            answers = self._request.infer({INPUT: np.ascontiguousarray(images)})
        except RuntimeError as error:
            raise EngineError(f"{self.backend}: the run failed: {one_line(error)}") from error
        return np.array(answers[OUTPUT], dtype=np.float32)  # a copy: the request's own memory is used again

    def close(self) -> None:
        """See `Engine.close`."""
        del self._request, self._compiled


def _import_openvino() -> ModuleType:
    return require("openvino", "running an ONNX file with --provider openvino", "openvino")


def _shapes(ports: list[Any]) -> dict[str, list[int]]:
    """Shapes without the batch, by name."""
    return {port.any_name: [dimension.get_length() for dimension in list(port.partial_shape)[1:]] for port in ports}
