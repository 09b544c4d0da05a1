"""What a model file holds, found out without running it: size, weights, layers, multiply-adds.

The layers of a TensorRT plan come from TensorRT's own inspector, on the GPU that runs it. Does not know: printing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.sidecar import Sidecar, file_sha256, read_sidecar
from trt_cls.contract import Contract
from trt_cls.engines.onnx_graph import Graph, Layer, Tensor, read_graph
from trt_cls.engines.sidecar import read_plan
from trt_cls.engines.tensorrt.api import import_runtime, make_logger
from trt_cls.errors import DeviceError, EngineError, MissingDependency
from trt_cls.gpu import visible_gpu
from trt_cls.models.int8_ranges import SCALE

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
NO_PARAMETER_SUFFIXES = (".num_batches_tracked", SCALE)
"""Counts of batches, and INT8's scales."""


@dataclass(frozen=True)
class Inspection:
    """What is known of one model file; what a file of its kind does not hold is None or empty."""

    path: Path
    bytes: int
    sha256: str
    contract: Contract
    parameters: int | None = None
    """With the statistics of batch normalization, which an ONNX file has in the weights of convolutions."""
    multiply_adds: int | None = None
    """Of convolutions and matrix products, for one image."""
    weights: dict[str, int] | None = None
    """Type → number of values."""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    layers: tuple[Layer, ...] = ()
    sidecar: Sidecar | None = None
    plan: tuple[PlanLayer, ...] = ()
    missing: str = ""
    """What could not be found out here, and why."""


def inspect(path: Path) -> Inspection:
    """What the model file `path` holds.

    Raises:
        ArtefactError: it is missing, damaged, not of trt-cls, or a plan that is not the one its sidecar describes.
    """
    contract = read_contract(path)
    known = Inspection(path, path.stat().st_size, file_sha256(path), contract)
    if path.suffix == ".onnx":
        return _of_graph(known, read_graph(path))
    if path.suffix == ".safetensors":
        return _of_checkpoint(known)
    return _of_plan(known)


def _of_graph(known: Inspection, graph: Graph) -> Inspection:
    share = (
        graph.eight_bits if known.contract.precision in ("int8", "fp8") else None
    )  # files of version 0.1 do not say it
    return replace(
        known,
        contract=replace(known.contract, eight_bits=share),
        parameters=sum(layer.parameters for layer in graph.layers),
        multiply_adds=sum(layer.multiply_adds for layer in graph.layers),
        weights=graph.weights,
        inputs=graph.inputs,
        outputs=graph.outputs,
        layers=graph.layers,
    )


def _of_checkpoint(known: Inspection) -> Inspection:
    weights: dict[str, int] = {}
    parameters = 0
    with safe_open(known.path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  it is no dictionary
            tensor = file.get_slice(name)
            kind, count = TYPES.get(tensor.get_dtype(), tensor.get_dtype()), prod(tensor.get_shape())
            weights[kind] = weights.get(kind, 0) + count
            parameters += 0 if name.endswith(NO_PARAMETER_SUFFIXES) else count
    known = replace(known, parameters=parameters, weights=weights)
    if find_spec("torch") is None:
        return replace(known, missing='multiply-adds: counting them needs torch: pip install "trt-cls[train]"')
    from trt_cls.models.checkpoint import load_checkpoint
    from trt_cls.models.int8_layers import restore_layers
    from trt_cls.models.network import multiply_adds

    network = load_checkpoint(known.path).module
    restore_layers(network)  # rounding costs no multiplication, and has none on the meta device
    cost = multiply_adds(network.to("meta"), known.contract.preprocessing.input_shape)
    return replace(known, multiply_adds=cost)


def _of_plan(known: Inspection) -> Inspection:
    sidecar = read_sidecar(known.path)
    if known.sha256 != sidecar.sha256:
        read_plan(known.path, sidecar)  # refuses it
    known = replace(known, sidecar=sidecar)
    try:
        return replace(known, plan=plan_layers(known.path, sidecar))
    except (DeviceError, EngineError, MissingDependency) as error:
        return replace(known, missing=f"layers: {error}")


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
    if visible_gpu() is None:
        raise DeviceError("a plan's layers can be read only on a GPU that runs it, and none is visible here")
    trt = import_runtime(sidecar.builder)
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
