from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.tiny_models import CONTRACT, SIZE, probabilities, write_onnx
from trt_cls.engines import open_engine
from trt_cls.engines.classifier import load_classifier
from trt_cls.errors import ArtefactError, EngineError, MissingDependency, RequestError

openvino = pytest.importorskip("openvino")


def batch(*colors: tuple[int, int, int]) -> Any:
    images = np.empty((len(colors), 3, SIZE, SIZE), np.float32)
    images[:] = np.array(colors, np.float32)[:, :, None, None] / 255
    return images


@pytest.mark.parametrize("threads", [None, 1])
def test_answers_are_exact_and_of_any_batch(tmp_path: Path, threads: int | None) -> None:
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), "openvino", threads)
    colors = [(255, 0, 0), (0, 200, 100), (0, 0, 9)]
    for count in (3, 1, 2):
        answers = engine.infer(batch(*colors[:count]))
        np.testing.assert_allclose(answers, [probabilities(color) for color in colors[:count]], atol=1e-6)
    assert answers.dtype == np.float32
    assert (engine.backend, engine.contract) == ("openvino-cpu", CONTRACT)
    engine.close()


def test_answers_are_not_overwritten_by_the_next(tmp_path: Path) -> None:
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), "openvino")
    first = engine.infer(batch((255, 0, 0)))
    kept = first.copy()
    engine.infer(batch((0, 0, 255)))
    np.testing.assert_array_equal(first, kept)


def test_it_computes_in_float32_where_the_processor_would_offer_less(tmp_path: Path) -> None:
    engine: Any = open_engine(write_onnx(tmp_path / "model.onnx"), "openvino")
    assert engine._request(None).get_compiled_model().get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_a_classifier_takes_it(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    image = np.full((SIZE, SIZE, 3), (0, 200, 100), np.uint8)
    with load_classifier(path, "openvino") as classifier:
        np.testing.assert_allclose(classifier.predict_proba(image), [probabilities((0, 200, 100))], atol=1e-6)


def test_a_batch_of_another_shape_is_refused(tmp_path: Path) -> None:
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), "openvino")
    with pytest.raises(EngineError, match=r"expected float32 \['n', 3, 16, 16\]"):
        engine.infer(np.zeros((1, 3, SIZE, SIZE + 1), np.float32))


def test_a_graph_that_can_not_be_loaded_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes().replace(b"GlobalAveragePool", b"GlobalAveragePoul"))
    with pytest.raises(ArtefactError, match=r"model.onnx: OpenVINO .* can't load it") as caught:
        open_engine(path, "openvino")
    assert "\n" not in str(caught.value)


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
