"""The first layer in which two ONNX files of one network differ: every tensor between input and output, in order.

Both graphs run in ONNX Runtime without optimization, so that each tensor is computed as the file says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.artefacts import onnx_file
from trt_cls.artefacts.model_file import read_contract
from trt_cls.contract import INPUT, Precision
from trt_cls.engines.onnxruntime import session_of
from trt_cls.errors import ArtefactError, EngineError, MissingDependency, RequestError, one_line

if TYPE_CHECKING:
    import onnx

Activations = NDArray[np.floating[Any]]

LAYER_BOUNDS: dict[Precision, float] = {"fp32": 1e-5, "fp16": 0.03, "int8": 0.3, "fp8": 0.3}
"""How far a tensor may be off, as a share of its largest value, by the coarser of the two files: float32 rounds at
1e-7, float16 at 1e-3 and 8 bits at 1e-2, and the errors of some fifty layers add up."""


@dataclass(frozen=True)
class LayerDifference:
    """One tensor that both networks compute."""

    tensor: str
    node: str
    """The node that computes the tensor."""
    operation: str
    largest: float
    """Largest absolute value in the first network's tensor."""
    difference: float
    """Largest absolute difference as a share of `largest`."""
    weights: tuple[str, ...]
    """Weights of the node that differ, by the first network's names."""
    noise: float = 0.0
    """Root mean square of the difference as a share of the tensor's own."""
    added: float = 0.0
    """By how much `noise` exceeds that of what the node reads."""


def compare_layers(a: Path, b: Path, images: NDArray[np.float32]) -> tuple[LayerDifference, ...]:
    """The tensors with the same name in both graphs, in the order of the first.

    Raises:
        ArtefactError: the graphs share no names.
        EngineError: ONNX Runtime can't run one of them layer by layer.
        RequestError: a file is no ONNX file.
    """
    model_a, model_b = _read(a), _read(b)
    nodes_b = {name: node for node in model_b.graph.node for name in node.output}
    shared = {name: node for node in model_a.graph.node for name in node.output if name in nodes_b}
    if not shared:
        raise ArtefactError(
            f"{a} and {b} have no tensor name in common; expected two files of one network; "
            "export both with the same version of trt-cls"
        )
    weights_a, weights_b = _weights(model_a), _weights(model_b)
    values_a, values_b = _activations(a, model_a, shared, images), _activations(b, model_b, shared, images)
    found = []
    noises: dict[str, float] = {}
    for name, node in shared.items():
        if values_a[name].shape != values_b[name].shape:
            raise ArtefactError(
                f"{a} and {b} are no files of one network: {name} is {list(values_a[name].shape)} in the first and "
                f"{list(values_b[name].shape)} in the second; export both from one checkpoint"
            )
        if np.issubdtype(values_a[name].dtype, np.floating):
            largest, difference = _distance(values_a[name], values_b[name])
            changed = _changed(node, nodes_b[name], weights_a, weights_b)
            noises[name] = noise = _noise(values_a[name], values_b[name])
            read = {*node.input, *nodes_b[name].input} - {name}
            added = noise - max((noises[other] for other in read if other in noises), default=0.0)
            of_node = name, node.name or node.op_type, node.op_type
            found.append(LayerDifference(*of_node, largest, difference, changed, noise, added))
    return tuple(found)


def bound(a: Precision, b: Precision) -> float:
    """The largest relative difference to expect between tensors of files in these precisions."""
    return max(LAYER_BOUNDS[a], LAYER_BOUNDS[b])


def first_beyond(differences: Sequence[LayerDifference], limit: float) -> LayerDifference | None:
    """The first tensor that differs by more than `limit`, or is NaN in only one network."""
    return next((layer for layer in differences if not layer.difference <= limit), None)


def noisiest(differences: Sequence[LayerDifference]) -> LayerDifference | None:
    """The layer that adds most noise of its own, however much it got from those before it."""
    return max((layer for layer in differences if layer.added > 0), key=lambda layer: layer.added, default=None)


def _read(path: Path) -> onnx.ModelProto:
    if path.suffix != ".onnx":
        raise RequestError(f"{path}: layers are compared between ONNX files only; name two .onnx files")
    read_contract(path)
    return onnx_file.read_proto(path)


def _activations(
    path: Path, model: onnx.ModelProto, names: Mapping[str, Any], images: NDArray[np.float32]
) -> dict[str, Activations]:
    try:
        session = session_of(model, names, optimized=False)
        return dict(zip(names, session.run(list(names), {INPUT: images}), strict=True))
    except MissingDependency:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise EngineError(f"{path}: ONNX Runtime can't run it layer by layer: {one_line(error)}") from error


def _distance(a: Activations, b: Activations) -> tuple[float, float]:
    """The largest value of `a`, and the largest difference as a share of it; NaN where only one side is NaN."""
    exact_a, exact_b = a.astype(np.float64), b.astype(np.float64)
    same = (exact_a == exact_b) | (np.isnan(exact_a) & np.isnan(exact_b))
    gap = float(np.abs(exact_a - exact_b, where=~same, out=np.zeros_like(exact_a)).max(initial=0))
    largest = float(np.abs(exact_a).max(initial=0))
    return largest, gap / largest if largest else gap


def _noise(a: Activations, b: Activations) -> float:
    exact = a.astype(np.float64)
    power = np.square(exact).mean()
    return float(np.sqrt(np.square(exact - b).mean() / power)) if power else 0.0


def _weights(model: onnx.ModelProto) -> dict[str, Activations]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _changed(
    node_a: onnx.NodeProto, node_b: onnx.NodeProto, a: Mapping[str, Activations], b: Mapping[str, Activations]
) -> tuple[str, ...]:
    """Names of the first node's weights that have other values in the second, at the precision of the coarser one."""
    shared = [name for name in node_a.input if name in a and name in b and name in node_b.input]
    return tuple(name for name in shared if not _equal(a[name], b[name]))


def _equal(a: Activations, b: Activations) -> bool:
    coarser = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return np.array_equal(a.astype(coarser), b.astype(coarser))
