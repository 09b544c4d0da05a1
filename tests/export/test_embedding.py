from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import OnnxModel, write_onnx
from trt_cls.contract import Contract, Precision, Preprocessing
from trt_cls.data.folder import Sample, list_images
from trt_cls.data.stream import stream
from trt_cls.engines.backends import Provider, open_engine
from trt_cls.engines.classifier import load_classifier
from trt_cls.engines.engine import infer_fed
from trt_cls.errors import EngineError, RequestError
from trt_cls.evaluation.compare import compare
from trt_cls.export.embedding import embed_preprocessing
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8
from trt_cls.preprocessing.pillow import fit, normalize

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def pair(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file and the same with its preprocessing inside."""
    folder = tmp_path_factory.mktemp("pair")
    for name, embed in (("plain.onnx", False), ("pixels.onnx", True)):
        result = export(checkpoint, folder / name, embed=embed, images=pictures, builder="none")
        assert result.parity is not None
        assert result.parity.top1_agreement == 1
    return folder / "plain.onnx", folder / "pixels.onnx"


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_pixels_of_the_networks_size_give_the_answers_of_the_outside_path(
    pair: tuple[Path, Path], provider: Provider
) -> None:
    if provider == "openvino":
        pytest.importorskip("openvino")
    plain, embedded = (open_engine(path, provider) for path in pair)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    images = np.stack([normalize(image, plain.contract.preprocessing) for image in pixels])
    found: Any = embedded.infer(pixels)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, plain.infer(images), atol=1e-6)
    with pytest.raises(EngineError, match=r"expected uint8 \['n', 32, 32, 3\]"):
        embedded.infer(images)


@pytest.mark.parametrize(
    ("order", "divisor", "mean", "std"),
    [
        ("rgb", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("bgr", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
        ("rgb", 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ("gray", 255.0, (0.449,), (0.226,)),
    ],
)
def test_the_input_of_the_network_is_the_outside_paths_to_the_bit(
    order: Any, divisor: float, mean: Any, std: Any, contract: Contract
) -> None:
    """Of every mode, seen through a network that gives back its input."""
    described = Preprocessing(len(mean), 4, 5, "none", "bilinear", order, divisor, mean, std)
    shape = ["N", len(mean), 4, 5]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["input_1"], ["seen"])],
        "mirror",
        [onnx.helper.make_tensor_value_info("input_1", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, shape)],
    )
    flat = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [0, len(mean) * 20])
    graph.initializer.append(flat)
    graph.node.append(onnx.helper.make_node("Reshape", ["seen", "shape"], ["predictions"]))
    graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("predictions", onnx.TensorProto.FLOAT, ["N", len(mean) * 20])
    )
    mirror = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    model = replace(contract.model, input_image_size=f"{len(mean)},32,32")
    classes = tuple(str(index) for index in range(len(mean) * 20))
    own = replace(contract, model=model, preprocessing=described, classes=classes)
    from trt_cls.engines.onnxruntime import session_of

    pixels = np.random.default_rng(1).integers(0, 256, (3, 4, 5, len(mean)), dtype=np.uint8)
    (seen,) = session_of(embed_preprocessing(OnnxModel(mirror, own)).proto).run(None, {"input_1": pixels})
    expected = np.stack([normalize(image, described) for image in pixels])
    np.testing.assert_array_equal(seen.reshape(expected.shape), expected)


def test_its_contract_means_the_same_and_says_what_it_takes(fp32: onnx.ModelProto, contract: Contract) -> None:
    found = embed_preprocessing(OnnxModel(fp32, contract)).contract
    assert found.preprocessing == replace(contract.preprocessing, embedded=True)
    assert (found.preprocessing.input_shape, found.preprocessing.input_type) == ((32, 32, 3), "uint8")
    assert found.differences(contract) == []


def test_files_and_arrays_reach_it_as_pixels(pair: tuple[Path, Path], pictures: Path) -> None:
    """By the stream that evaluation uses, by a classifier, and held against the plain file."""
    paths = list_images(pictures)
    plain, embedded = (open_engine(path, "cpu") for path in pair)
    (batch,) = stream([Sample(path) for path in paths], embedded.contract.preprocessing, batch_size=99, workers=2)
    expected = [fit(Image.open(path), plain.contract.preprocessing) for path in paths]
    np.testing.assert_array_equal(batch.images, expected)
    with load_classifier(pair[0]) as outside, load_classifier(pair[1]) as inside:
        np.testing.assert_allclose(inside.predict_proba(list(paths)), outside.predict_proba(list(paths)), atol=1e-6)
        arrays = [np.asarray(Image.open(path)) for path in paths]
        np.testing.assert_allclose(inside.predict_proba(arrays), outside.predict_proba(arrays), atol=1e-6)
    for a, b in ((plain, embedded), (embedded, plain)):
        assert compare(a, b, [Sample(path) for path in paths]).max_abs_difference <= 1e-6
    assert infer_fed(embedded, embedded.contract.preprocessing)(batch.images).shape == (12, 5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_normalize_in_float32(
    checkpoint: Path, pictures: Path, tmp_path: Path, precision: Precision
) -> None:
    asked = {"precision": precision, "int8": Int8(pictures, method="minmax"), "images": pictures, "builder": "none"}
    for name, embed in (("plain.onnx", False), ("pixels.onnx", True)):
        export(checkpoint, tmp_path / name, embed=embed, **asked)  # type: ignore[arg-type]
    assert read_contract(tmp_path / "pixels.onnx").precision == precision
    with load_classifier(tmp_path / "plain.onnx") as outside, load_classifier(tmp_path / "pixels.onnx") as inside:
        paths = list(list_images(pictures))
        np.testing.assert_allclose(inside.predict_proba(paths), outside.predict_proba(paths), atol=1e-6)


def test_it_is_not_converted_further_and_can_be_copied(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="export from the checkpoint with --embed-preprocessing"):
        export(pair[1], tmp_path / "half.onnx", precision="fp16", builder="none")
    export(pair[1], tmp_path / "copy.onnx", builder="none")
    assert (tmp_path / "copy.onnx").read_bytes() == pair[1].read_bytes()
    export(pair[0], tmp_path / "pixels.onnx", embed=True, builder="none")
    assert read_contract(tmp_path / "pixels.onnx") == read_contract(pair[1])


def test_an_engine_is_built_from_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    result = export(pair[1], tmp_path / "pixels.onnx", builder="tensorrt-rtx")
    assert result.engine is not None
    assert read_contract(result.engine).preprocessing.embedded


def test_writing_it_leaves_the_source_alone(fp32: onnx.ModelProto, contract: Contract, tmp_path: Path) -> None:
    before = fp32.SerializeToString()
    write_onnx(embed_preprocessing(OnnxModel(fp32, contract)), tmp_path / "pixels.onnx")
    assert fp32.SerializeToString() == before
