"""ONNX files run by ONNX Runtime, on the provider that was asked for or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import require_own_weights
from trt_cls.contract import INPUT, OUTPUT
from trt_cls.engines.backends import Provider, resolved_provider
from trt_cls.engines.engine import check_images, check_signature, closed
from trt_cls.errors import ArtefactError, DeviceError, EngineError, one_line, require

if TYPE_CHECKING:
    from types import ModuleType

    import onnx

NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
UNSOUND = ["WeightBiasQuantization", "ReluQuantRewrite"]
"""The first turns biases that are inputs of INT8 layers, as in files of earlier versions, into integers, counted in the
file's float16: where they overflow, ONNX Runtime 1.31 moved probabilities of a resnet18 by 0.6, and without it by 0.04.
The second takes FP8's zero for its smallest number, and removes the Relu before it where that is in float32: the logits
of a resnet10 were at -5 dB, and without it at 34."""
NO_INTEGER_KERNELS = ("session.disable_quant_qdq", "1")
"""Q/DQ in float32, which calibration rules and layers are compared with, otherwise become QLinearConv and QGemm. What
those answer depends on the processor: without VNNI they add pairs of products in 16 bits, and saturate."""
ERRORS_ONLY = 3
"""ONNX Runtime's severity: its warnings are about graph optimization and help no user."""

_log = logging.getLogger(__name__)


class OnnxRuntimeEngine:
    """An ONNX file in an ONNX Runtime session."""

    def __init__(self, path: Path, provider: Provider, threads: int | None) -> None:
        self.contract = read_contract(path)
        require_own_weights(path)
        runtime = _import_onnxruntime()
        available = runtime.get_available_providers()
        wanted = resolved_provider(provider, gpu=NAMES["cuda"] in available)
        _require(wanted, available)
        self._session = _open_session(runtime, path, wanted, threads)
        running = _running_provider(self._session)
        if running != wanted:
            _refuse_or_warn(provider, wanted, running)
        self.backend = f"onnxruntime-{running}"
        check_signature(path, self.contract, _shapes(self._session.get_inputs()), _shapes(self._session.get_outputs()))

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.infer`."""
        check_images(images, self.contract)
        if self._session is None:
            raise closed(self.backend)
        try:
            (probabilities,) = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"{self.backend}: the run failed: {one_line(error)}") from error
        return np.asarray(probabilities, dtype=np.float32)

    def close(self) -> None:
        """See `Engine.close`."""
        self._session = None


def session_of(graph: onnx.ModelProto, tensors: Iterable[str] = (), *, optimized: bool = True) -> Any:
    """A session on the CPU for a graph that is not in a file, which gives the inner `tensors` too.

    Raises:
        MissingDependency: ONNX Runtime is not installed.
    """
    import onnx

    runtime = _import_onnxruntime()
    opened = deepcopy(graph)
    known = {info.name for info in (*graph.graph.input, *graph.graph.output)}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    options = _options(runtime, None)
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = opened.SerializeToString()
    return runtime.InferenceSession(content, options, providers=[NAMES["cpu"]], disabled_optimizers=UNSOUND)


def _import_onnxruntime() -> ModuleType:
    return require("onnxruntime", "running an ONNX file", "cpu")


def _require(provider: Provider, available: list[str]) -> None:
    if NAMES[provider] not in available:
        there = ", ".join(name for name, full in NAMES.items() if full in available)
        raise DeviceError(
            f"this ONNX Runtime has no provider {provider}, it has {there}; expected the package onnxruntime-gpu "
            'and an NVIDIA GPU: pip uninstall onnxruntime, then pip install "trt-cls[gpu]"; or use --provider cpu'
        )


def _open_session(runtime: ModuleType, path: Path, provider: Provider, threads: int | None) -> Any:
    options = _options(runtime, threads)
    providers = [NAMES[provider]] if provider == "cpu" else [NAMES[provider], NAMES["cpu"]]
    try:
        return runtime.InferenceSession(str(path), options, providers=providers, disabled_optimizers=UNSOUND)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ArtefactError(
            f"{path}: ONNX Runtime {runtime.__version__} can't load it ({one_line(error)}); "
            "expected a file written by trt-cls export; copy it or export it again"
        ) from error


def _options(runtime: ModuleType, threads: int | None) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry(*NO_INTEGER_KERNELS)
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _running_provider(session: Any) -> Provider:
    first = session.get_providers()[0]
    return next((name for name, full in NAMES.items() if full == first), "cpu")


def _refuse_or_warn(provider: Provider, wanted: Provider, running: Provider) -> None:
    if provider != "auto":
        raise DeviceError(
            f"ONNX Runtime could not start its provider {wanted} and fell back to {running}; expected a working NVIDIA "
            f"driver, CUDA and cuDNN; install them, or use --provider {running}"
        )
    _log.warning("ONNX Runtime could not start its provider %s: running on %s", wanted, running)


def _shapes(values: list[Any]) -> dict[str, list[int]]:
    return {value.name: list(value.shape[1:]) for value in values}
