"""What each backend that runs ONNX files on a CPU does alike; a new row of `BACKENDS` is tested here without a line."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.tiny_models import CONTRACT, RGB, SIZE, probabilities, write_onnx
from trt_cls.artefacts import onnx_file
from trt_cls.engines import open_engine
from trt_cls.engines.backends import BACKENDS, Provider
from trt_cls.engines.classifier import load_classifier
from trt_cls.errors import ArtefactError, EngineError
from trt_cls.export.embedding import embed_preprocessing

INSTALLED = {distribution.name for distribution in distributions()}
EACH = pytest.mark.parametrize(
    "provider",
    [
        pytest.param(
            provider,
            marks=pytest.mark.skipif(
                not INSTALLED & {*backend.packages}, reason=f"{' or '.join(backend.packages)} is not installed"
            ),
        )
        for backend in BACKENDS
        if ".onnx" in backend.suffixes
        for provider, device in backend.devices.items()
        if device == "cpu"
    ],
)


def batch(*colors: tuple[int, int, int]) -> Any:
    images = np.empty((len(colors), 3, SIZE, SIZE), np.float32)
    images[:] = np.array(colors, np.float32)[:, :, None, None] / 255
    return images


@EACH
@pytest.mark.parametrize("threads", [None, 1])
def test_probabilities_are_exact_for_batches_of_any_size(
    tmp_path: Path, provider: Provider, threads: int | None
) -> None:
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), provider, threads)
    colors = [(255, 0, 0), (0, 200, 100), (0, 0, 9)]
    for count in (3, 1, 2):
        answers = engine.infer(batch(*colors[:count]))
        assert answers.dtype == np.float32
        np.testing.assert_allclose(answers, [probabilities(color) for color in colors[:count]], atol=1e-6)
    assert engine.backend == f"{'onnxruntime' if provider == 'cpu' else provider}-cpu"
    assert engine.contract == CONTRACT
    engine.close()


@EACH
def test_answers_are_not_overwritten_by_the_next(tmp_path: Path, provider: Provider) -> None:
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), provider)
    first = engine.infer(batch((255, 0, 0)))
    kept = first.copy()
    engine.infer(batch((0, 0, 255)))
    np.testing.assert_array_equal(first, kept)


@EACH
def test_pixels_are_taken_where_normalization_is_in_the_graph(tmp_path: Path, provider: Provider) -> None:
    plain, path = write_onnx(tmp_path / "plain.onnx"), tmp_path / "model.onnx"
    onnx_file.write_onnx(embed_preprocessing(onnx_file.read_onnx(plain)), path)
    engine = open_engine(path, provider)
    pixels = np.full((2, SIZE, SIZE, 3), (0, 200, 100), np.uint8)
    np.testing.assert_allclose(engine.infer(pixels), [probabilities((0, 200, 100))] * 2, atol=1e-6)


@EACH
def test_a_closed_engine_says_so_and_closes_twice(tmp_path: Path, provider: Provider) -> None:
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), provider, 1)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match=f"{engine.backend}: the engine is closed; open it again"):
        engine.infer(batch((1, 2, 3)))


@EACH
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, SIZE, SIZE + 1), np.float32),
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((3, SIZE, SIZE), np.float32),
        np.zeros((0, 3, SIZE, SIZE), np.float32),
        np.zeros((1, 3, SIZE, SIZE), np.float64),
    ],
    ids=["wide", "channels-last", "one", "none", "float64"],
)
def test_a_batch_of_another_shape_is_refused(tmp_path: Path, provider: Provider, images: Any) -> None:
    engine = open_engine(write_onnx(tmp_path / "model.onnx"), provider)
    with pytest.raises(EngineError, match=r"expected float32 \['n', 3, 16, 16\]"):
        engine.infer(images)


@EACH
def test_a_graph_that_belies_its_contract_is_refused(tmp_path: Path, provider: Provider) -> None:
    path = write_onnx(tmp_path / "model.onnx", replace(CONTRACT, preprocessing=replace(RGB, height=24)))
    with pytest.raises(ArtefactError, match=r"3, 16, 16\].*expected .*3, 24, 16\].*"):
        open_engine(path, provider)


@EACH
def test_a_graph_that_can_not_be_loaded_is_an_error_of_the_file(tmp_path: Path, provider: Provider) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes().replace(b"GlobalAveragePool", b"GlobalAveragePoul"))
    with pytest.raises(ArtefactError, match=r"model.onnx: .*; expected .* export it again") as caught:
        open_engine(path, provider)
    assert "\n" not in str(caught.value)


@EACH
def test_a_classifier_takes_it(tmp_path: Path, provider: Provider) -> None:
    path, image = write_onnx(tmp_path / "model.onnx"), np.full((SIZE, SIZE, 3), (0, 200, 100), np.uint8)
    open_engine(path, provider).close()
    with load_classifier(path, provider) as classifier:
        np.testing.assert_allclose(classifier.predict_proba(image), [probabilities((0, 200, 100))], atol=1e-6)
