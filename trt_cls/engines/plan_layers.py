"""The layers of a TensorRT plan, as TensorRT's own inspector tells them on the GPU that runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_cls.artefacts.sidecar import Sidecar
from trt_cls.engines.sidecar import read_plan
from trt_cls.engines.tensorrt_api import import_runtime, make_logger
from trt_cls.errors import DeviceError, EngineError
from trt_cls.gpu import visible_gpu


@dataclass(frozen=True)
class PlanLayer:
    """One layer after TensorRT's fusions."""

    name: str
    type: str
    """Kind of layer; empty where the plan was built without details."""
    formats: tuple[str, ...]
    """Number types and layouts of its outputs; empty where the plan was built without details."""


def plan_layers(path: Path, sidecar: Sidecar) -> tuple[PlanLayer, ...]:
    """The layers of the plan `path`.

    Raises:
        DeviceError: there is no GPU.
        EngineError: the runtime can't load it here.
        MissingDependency: the runtime is not installed.
    """
    trt = import_runtime(sidecar.builder)
    if visible_gpu() is None:
        raise DeviceError("a plan's layers can be read only on a GPU that runs it, and none is visible here")
    logger = make_logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(read_plan(path, sidecar))
    if engine is None:
        reason = " ".join("; ".join(logger.errors).split()) or "TensorRT gave no reason"
        raise EngineError(f"{path}: {sidecar.builder} {trt.__version__} can't load it here: {reason}")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return tuple(_layer(entry) for entry in json.loads(text)["Layers"])


def _layer(entry: str | dict[str, Any]) -> PlanLayer:
    """A plan built with names alone holds strings."""
    if isinstance(entry, str):
        return PlanLayer(entry, "", ())
    formats = tuple(str(output.get("Format/Datatype", "")) for output in entry.get("Outputs", ()))
    return PlanLayer(str(entry.get("Name", "")), str(entry.get("LayerType", "")), formats)
