"""Within one process, networks of equal layers are exported once: torch takes three seconds of CPU for a small one.

Equal are networks of the same pickle where each tensor of the state dict is replaced by its dtype and shape, and all
others by their content too, with the same input shape. What is kept is the graph before the exporter's optimizer, which
folds weights into each other: it gets the weights of the network at hand and is optimized each time.
`test_the_same_weights_give_the_same_bytes` holds this against an export by torch alone.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from collections import OrderedDict
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import onnx

from trt_cls.export import torch_to_onnx


class Names(NamedTuple):
    """How many values and nodes without a name were given one: what the optimizer adds is numbered from there."""

    values: int
    nodes: int


KEPT = 24
"""Graphs, without their weights."""
EXPORT = torch_to_onnx._exported
_made: OrderedDict[bytes, tuple[bytes, Names]] = OrderedDict()


class _Digest(pickle.Pickler):
    def __init__(self, file: io.BytesIO, weights: dict[int, str]) -> None:
        super().__init__(file)
        self._weights = weights

    def reducer_override(self, value: Any) -> Any:
        import torch

        if not isinstance(value, torch.Tensor):
            return NotImplemented
        if id(value) in self._weights:
            content = self._weights[id(value)]
        else:
            content = hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        return tuple, ((str(value.dtype), tuple(value.shape), content),)


def remember_exports() -> None:
    """Makes `torch_to_onnx` take the graph that it exported before for a network of equal layers; once is enough."""
    if torch_to_onnx._exported is not EXPORT:
        return

    def exported(module: Any, input_shape: tuple[int, int, int]) -> onnx.ModelProto:
        weights = module.state_dict(keep_vars=True)
        key = _key(module, weights, input_shape)
        if not key or sys.modules.get("onnxscript", onnx) is None:  # a test takes it away
            return EXPORT(module, input_shape)
        if key not in _made:
            model, names = _unoptimized(module, input_shape)
            _made[key] = _without_weights(model, weights), names
            if len(_made) > KEPT:
                _made.popitem(last=False)
        _made.move_to_end(key)
        content, names = _made[key]
        return _optimized(_with_weights(onnx.load_from_string(content), weights), names)

    torch_to_onnx._exported = exported


def _key(module: Any, weights: dict[str, Any], input_shape: tuple[int, int, int]) -> bytes:
    """Empty where a part of the network can't be pickled."""
    text = io.BytesIO()
    try:
        _Digest(text, {id(tensor): name for name, tensor in weights.items()}).dump((input_shape, module))
    except (AttributeError, TypeError, RuntimeError, pickle.PicklingError):
        return b""
    return hashlib.sha256(text.getvalue()).digest()


def _unoptimized(module: Any, input_shape: tuple[int, int, int]) -> tuple[onnx.ModelProto, Names]:
    from torch.onnx import ONNXProgram

    _read_operators_once()
    found = []

    def optimize(program: Any) -> None:
        given = program.model.graph._name_authority
        found.append(Names(given._value_counter, given._node_counter))

    with patch.object(ONNXProgram, "optimize", optimize):
        model = EXPORT(module, input_shape)
    (names,) = found
    return model, names


def _without_weights(model: onnx.ModelProto, weights: dict[str, Any]) -> bytes:
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            assert tensor.raw_data == weights[tensor.name].detach().contiguous().numpy().tobytes()
            tensor.raw_data = b""
    return model.SerializeToString()


def _with_weights(model: onnx.ModelProto, weights: dict[str, Any]) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = weights[tensor.name].detach().contiguous().numpy().tobytes()
    return model


def _optimized(model: onnx.ModelProto, names: Names) -> onnx.ModelProto:
    from onnxscript import ir
    from torch.onnx._internal._lazy_import import onnxscript_apis

    read = ir.from_proto(model)
    given: Any = read.graph._name_authority
    given._value_counter, given._node_counter = names
    return ir.to_proto(onnxscript_apis.optimize(read))


def _read_operators_once() -> None:
    """The exporter parses the source of its 500 operators at each export: a fifth of the whole."""
    try:
        from torch.onnx._internal.exporter._registration import onnxscript_apis as operators
    except ImportError:
        return
    if not hasattr(operators.get_torchlib_ops, "cache_info"):
        operators.get_torchlib_ops = cache(operators.get_torchlib_ops)
