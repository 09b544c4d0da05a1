"""ONNX files run by OpenVINO on the CPU, which runs INT8 files several times faster than ONNX Runtime does.

OpenVINO computes in bfloat16 by default where the processor has it. Here it computes in float32 all that the file does
not say to be INT8: the answers are then those of the file, float16 files' included, and INT8 files lose no speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import require_own_weights
from trt_cls.contract import INPUT, OUTPUT
from trt_cls.engines.backends import Provider
from trt_cls.engines.engine import check_images, check_signature, closed
from trt_cls.errors import ArtefactError, EngineError, one_line, require

DEVICE = "CPU"
MOST_SHAPES = 4
"""Batch sizes that stay compiled: a full batch, the last one, and two for a caller that changes them."""
SETTINGS: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    # One batch at a time on all cores. OpenVINO's other hint, THROUGHPUT, gives each of several requests some of the
    # cores: a single batch then ran a quarter slower.
    "PERFORMANCE_HINT": "LATENCY",
}


class OpenVinoEngine:
    """An ONNX file compiled by OpenVINO for this CPU."""

    backend = "openvino-cpu"

    def __init__(self, path: Path, provider: Provider, threads: int | None) -> None:
        self.contract = read_contract(path)
        require_own_weights(path)
        self._path = path
        self._openvino = require("openvino", f"running an ONNX file with --provider {provider}", "openvino")
        self._settings = SETTINGS if threads is None else {**SETTINGS, "INFERENCE_NUM_THREADS": threads}
        self._static = self.contract.precision == "int8" and has_amx()
        self._core = self._openvino.Core()
        self._requests: dict[int | None, Any] = {}
        with self._loading():
            self._model = self._core.read_model(path)
        if self.contract.precision == "int8" and saturates():
            self._settings = {**self._settings, "LP_TRANSFORMS_MODE": "NO"}
            _in_float32(self._model)
        check_signature(path, self.contract, _shapes(self._model.inputs), _shapes(self._model.outputs))
        if not self._static:
            self._request(None)

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.infer`."""
        check_images(images, self.contract)
        if self._model is None:
            raise closed(self.backend)
        request = self._request(len(images) if self._static else None)
        try:
            answers = request.infer({INPUT: np.ascontiguousarray(images)})
        except RuntimeError as error:
            raise EngineError(f"{self.backend}: the run failed: {one_line(error)}") from error
        return np.array(answers[OUTPUT], dtype=np.float32)  # a copy: the request's own memory is used again

    def close(self) -> None:
        """See `Engine.close`."""
        self._requests, self._model = {}, None

    def _request(self, batch: int | None) -> Any:
        """What runs batches of this size; None: of any."""
        if batch not in self._requests:
            with self._loading():
                if batch is not None:
                    self._model.reshape([batch, *self.contract.preprocessing.input_shape])
                compiled = self._core.compile_model(self._model, DEVICE, self._settings)
            if len(self._requests) == MOST_SHAPES:
                del self._requests[next(iter(self._requests))]
            self._requests[batch] = compiled.create_infer_request()
        return self._requests[batch]

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ArtefactError(
                f"{self._path}: OpenVINO {self._openvino.__version__} can't load it ({one_line(error)}); "
                "expected a file written by trt-cls export; copy it or export it again"
            ) from error


def has_amx() -> bool:
    """Whether this processor multiplies 8-bit matrices by AMX.

    INT8 networks are compiled there for one batch size at a time: with a dynamic one the runs of OpenVINO 2026.1 to
    2026.3 crash (openvino issue 37577).
    """
    return "amx_int8" in _processor()


def saturates() -> bool:
    """Whether this processor adds pairs of 8-bit products in 16 bits, where they saturate: x86 without VNNI.

    INT8 files are then computed in float, as the file says. OpenVINO 2026.4's integer kernels with AVX2 gave a
    transformer 21 dB of signal to noise where float gives 49, and moved probabilities of a resnet by 0.34 where float
    moves them by 0.03; a ConvNeXt 20 dB where float gives 23.
    """
    flags = _processor()
    return "avx2" in flags and "vnni" not in flags


def _in_float32(model: Any) -> None:
    """Converts the file's float16 weights to float32, in which they are computed anyway.

    Without integer kernels OpenVINO can't load ConvNeXts otherwise: it moves a FakeQuantize whose ranges are of both
    types, and fails (OpenVINO 2026.4).
    """
    constant, half = require("openvino", "float32", "openvino").op.Constant, "f16"
    for operation in model.get_ordered_ops():
        outputs = operation.outputs()
        if not outputs or outputs[0].get_element_type().to_string() != half:
            continue
        if operation.get_type_name() == "Constant":
            outputs[0].replace(constant(operation.get_data().astype(np.float32)).output(0))
        elif operation.get_type_name() == "Convert":
            operation.set_attribute("destination_type", "f32")
    model.validate_nodes_and_infer_types()


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _shapes(ports: list[Any]) -> dict[str, list[int]]:
    """Shapes without the batch, by name."""
    return {port.any_name: [dimension.get_length() for dimension in list(port.partial_shape)[1:]] for port in ports}
