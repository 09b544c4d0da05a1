from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.tiny_models import CONTRACT, SIZE, write_onnx
from trt_cls.engines import open_engine
from trt_cls.errors import MissingDependency, RequestError

openvino = pytest.importorskip("openvino")


def test_it_computes_in_float32_where_the_processor_would_offer_less(tmp_path: Path) -> None:
    engine: Any = open_engine(write_onnx(tmp_path / "model.onnx"), "openvino")
    assert engine._request(None).get_compiled_model().get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"openvino.*trt-cls\[openvino\]"):
        open_engine(write_onnx(tmp_path / "model.onnx"), "openvino")


@pytest.mark.parametrize("name", ["model.safetensors", "model.engine"])
def test_it_runs_onnx_files_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(RequestError, match="expected"):
        open_engine(tmp_path / name, "openvino")


def test_int8_on_amx_runs_batches_of_static_shapes_with_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_onnx(tmp_path / "model.onnx", replace(CONTRACT, precision="int8"))
    images = np.random.default_rng(0).random((7, 3, SIZE, SIZE), np.float32)
    expected = open_engine(path, "openvino").infer(images)
    monkeypatch.setattr("trt_cls.engines.openvino.has_amx", lambda: True)
    engine: Any = open_engine(path, "openvino")
    for size in (1, 7, 2, 3, 4, 1):
        np.testing.assert_allclose(engine.infer(images[:size]), expected[:size], rtol=0, atol=1e-6)
    shapes = [request.get_compiled_model().inputs[0].partial_shape for request in engine._requests.values()]
    assert all(shape.is_static for shape in shapes)
    assert len(shapes) == 4
