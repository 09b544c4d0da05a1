from __future__ import annotations

from collections.abc import Callable
from configparser import ConfigParser, SectionProxy
from ctypes import CDLL, POINTER, byref, c_char_p, c_double, c_size_t, c_void_p
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import OnnxModel, write_onnx
from trt_cls.artefacts.sidecar import Profile, Sidecar, file_sha256, read_sidecar, write_sidecar
from trt_cls.cli import main
from trt_cls.contract import Contract, Precision, Preprocessing, Reject
from trt_cls.engines.sidecar import read_plan
from trt_cls.errors import ExportError, RequestError
from trt_cls.export.embedding import embed_normalization
from trt_cls.preprocessing import pillow
from trt_cls.preprocessing.description import preprocessing_from_spec
from trt_cls.serving import deepstream as writer
from trt_cls.serving.common import ServedPlan
from trt_cls.serving.deepstream import crop_in_frame, write_deepstream
from trt_cls.spec import loads

ort = pytest.importorskip("onnxruntime")

NO_PLAN = ServedPlan(None, Profile(1, 8, 32), "not asked for")
SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "{channels},16,24" }}
train_config {{
  train_dataset_path: "a" val_dataset_path: "b" n_epochs: 1 batch_size_per_gpu: 1 preprocess_mode: "{mode}"
  optimizer {{ sgd {{ lr: 0.1 }} }} reg_config {{ type: "None" }} lr_config {{ cosine {{ learning_rate: 0.1 }} }}
}}
"""


def silent(line: str) -> None:
    pass


def published(mode: str, pixels: np.ndarray) -> np.ndarray:
    """What Keras' preprocess_input documents for `mode`, from RGB or gray pixels [H,W,C] to [C,H,W], in float64."""
    planes = pixels.astype(np.float64).transpose(2, 0, 1)
    gray = len(planes) == 1
    if mode == "tf":
        return planes / 127.5 - 1
    if mode == "torch":
        mean, std = ([0.449], [0.226]) if gray else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return (planes / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    return planes - 117.3786 if gray else planes[::-1] - np.reshape([103.939, 116.779, 123.68], (3, 1, 1))


def averaging(path: Path, contract: Contract) -> Path:
    """A network for any input shape: the mean of each channel, and a softmax."""
    pixels = contract.preprocessing
    classes = len(contract.classes)
    weight = numpy_helper.from_array(
        np.linspace(-1, 1, pixels.channels * classes, dtype=np.float32).reshape(-1, classes), "w"
    )
    nodes = [
        helper.make_node("GlobalAveragePool", ["input_1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["predictions"]),
    ]
    fed = helper.make_tensor_value_info("input_1", onnx.TensorProto.FLOAT, ["N", *pixels.input_shape])
    answer = helper.make_tensor_value_info("predictions", onnx.TensorProto.FLOAT, ["N", classes])
    graph = helper.make_graph(nodes, "averages", [fed], [answer], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    write_onnx(OnnxModel(model, contract), path)
    return path


def read_config(folder: Path) -> SectionProxy:
    parser = ConfigParser(strict=True, interpolation=None)
    parser.read_string((folder / "nvinfer_config.txt").read_text(encoding="utf-8"))
    assert parser.sections() == ["property"]
    return parser["property"]


def fed_by_nvinfer(config: SectionProxy, pixels: np.ndarray) -> np.ndarray:
    """The tensor [C,H,W] that nvinfer documents for RGB or gray pixels [H,W,C] of the network's size, in float32."""
    scale = np.float32(config["net-scale-factor"])
    offsets = np.array([float(value) for value in config["offsets"].split(";")], np.float32)
    planes = pixels.astype(np.float32).transpose(2, 0, 1)
    order = {"0": [0, 1, 2], "1": [2, 1, 0], "2": [0]}[config["model-color-format"]]
    assert len(offsets) == len(order) == len(planes)
    return np.stack([scale * (planes[channel] - offset) for channel, offset in zip(order, offsets, strict=True)])


def seen_by_the_first_layer(model: Path, fed: np.ndarray) -> np.ndarray:
    graph = onnx.load(model)
    (name,) = (node.input[0] for node in graph.graph.node if node.op_type == "GlobalAveragePool")
    if name == "input_1":
        return fed
    graph.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"input_1": fed[None]})[0][0]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_nvinfers_arithmetic_gives_the_pixels_of_the_training(mode: str, channels: int, tmp_path: Path) -> None:
    experiment = loads(SPEC.format(mode=mode, channels=channels))
    contract = Contract(experiment.model_config, preprocessing_from_spec(experiment, "train"), ("a", "b"))
    write_deepstream(averaging(tmp_path / "net.onnx", contract), NO_PLAN, tmp_path / "ds", silent)
    config = read_config(tmp_path / "ds")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, channels), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    found = seen_by_the_first_layer(tmp_path / "ds" / config["onnx-file"], fed_by_nvinfer(config, pixels))
    np.testing.assert_allclose(found, published(mode, pixels), rtol=0, atol=1e-4)
    assert config["infer-dims"] == f"{channels};16;24"
    embedded = (mode, channels) == ("torch", 3)
    assert config["onnx-file"] == ("net.pixels.onnx" if embedded else "net.onnx")
    assert (config["net-scale-factor"] == "1.0") == (embedded or mode == "caffe")
    text = (tmp_path / "ds" / "nvinfer_config.txt").read_text()
    assert ("one net-scale-factor" in text) == ("one net-scale-factor" in (tmp_path / "ds" / "README.md").read_text())
    assert ("0.229, 0.224, 0.225" in text) == embedded


def file_name(text: str) -> str:
    assert "/" not in text, "a file of the folder itself"
    return text


def one_of(*values: int) -> Callable[[str], bool]:
    return lambda text: int(text) in values


def numbers(text: str, kind: type[int] | type[float]) -> list[float]:
    return [kind(value) for value in text.split(";")]


DOCUMENTED: dict[str, Callable[[str], Any]] = {
    "gpu-id": lambda text: int(text) >= 0,
    "gie-unique-id": lambda text: int(text) > 0,
    "onnx-file": file_name,
    "model-engine-file": file_name,
    "labelfile-path": file_name,
    "network-mode": one_of(0, 1, 2),
    "batch-size": lambda text: 1 <= int(text) <= 1024,
    "infer-dims": lambda text: len(numbers(text, int)) == 3 and min(numbers(text, int)) > 0,
    "network-input-order": one_of(0, 1),
    "model-color-format": one_of(0, 1, 2),
    "net-scale-factor": lambda text: float(text) > 0,
    "offsets": lambda text: 1 <= len(numbers(text, float)) <= 4,
    "maintain-aspect-ratio": one_of(0, 1),
    "symmetric-padding": one_of(0, 1),
    "scaling-compute-hw": one_of(0, 1),
    "scaling-filter": one_of(0, 1, 2, 3, 4, 5, 6),
    "network-type": one_of(0, 1, 2, 3, 100),
    "output-blob-names": lambda text: all(text.split(";")),
    "classifier-threshold": lambda text: 0 <= float(text) < 1,
    "process-mode": one_of(1, 2),
}
"""Keys of [property] that Gst-nvinfer knows (gstnvinfer_property_parser.cpp) and a classifier can use, with the
types and ranges that it takes; `scaling-compute-hw=2` is for Jetson alone."""


@pytest.mark.parametrize("crop", ["none", "center"])
@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_every_key_is_one_that_nvinfer_documents_and_its_value_in_range(mode: str, crop: Any, tmp_path: Path) -> None:
    for channels in (1, 3):
        experiment = loads(SPEC.format(mode=mode, channels=channels))
        pixels = replace(preprocessing_from_spec(experiment, "train"), crop=crop)
        source = averaging(tmp_path / "net.onnx", Contract(experiment.model_config, pixels, ("a", "b")))
        write_deepstream(source, NO_PLAN, tmp_path / "ds", silent)
        config = read_config(tmp_path / "ds")
        assert set(config) <= set(DOCUMENTED)
        assert [key for key, value in config.items() if not DOCUMENTED[key](value)] == []
        assert len(numbers(config["offsets"], float)) == numbers(config["infer-dims"], int)[0] == channels


def test_glib_which_nvinfer_reads_with_finds_the_same_numbers(write: Callable[..., Path]) -> None:
    """GKeyFile has rules of its own for comments, lists and numbers."""
    name = find_library("glib-2.0")
    if name is None:
        pytest.skip("GLib is not installed")
    glib = CDLL(name)
    glib.g_key_file_new.restype = c_void_p
    glib.g_key_file_get_double.restype = c_double
    glib.g_key_file_get_double_list.restype = POINTER(c_double)
    glib.g_key_file_get_string.restype = c_char_p
    folder = write(preprocessing=replace(TORCH, divisor=1e6, std=(0.5, 0.5, 0.5)))
    config, key_file, length = read_config(folder), c_void_p(glib.g_key_file_new()), c_size_t()
    assert glib.g_key_file_load_from_file(key_file, str(folder / "nvinfer_config.txt").encode(), 0, None)
    assert "e-" in config["net-scale-factor"]
    for key, value in config.items():
        asked = (key_file, b"property", key.encode())
        if key in ("offsets", "infer-dims"):
            found = glib.g_key_file_get_double_list(*asked, byref(length), None)
            assert found[: length.value] == numbers(value, float)
        elif value.isdecimal() and key in ("maintain-aspect-ratio", "symmetric-padding"):
            assert glib.g_key_file_get_boolean(*asked, None) == int(value)
        elif value.isdecimal():
            assert glib.g_key_file_get_integer(*asked, None) == int(value)
        elif key in ("net-scale-factor", "classifier-threshold"):
            assert glib.g_key_file_get_double(*asked, None) == float(value)
        else:
            assert glib.g_key_file_get_string(*asked, None).decode() == value


TORCH = Preprocessing(
    3, 32, 32, "center", "bilinear", "rgb", divisor=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_file_that_normalizes_inside_answers_to_the_bit(
    precision: Precision, contract: Contract, request: pytest.FixtureRequest
) -> None:
    model = OnnxModel(request.getfixturevalue(precision), replace(contract, preprocessing=TORCH, precision=precision))
    embedded = embed_normalization(model)
    assert model.contract.preprocessing == TORCH, "the model that was given must stay"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    by_hand = np.stack([pillow.normalize(image, TORCH) for image in pixels])
    by_contract = np.stack([pillow.normalize(image, embedded.contract.preprocessing) for image in pixels])
    assert np.array_equal(by_contract, pixels.transpose(0, 3, 1, 2))
    expected, found = (
        ort.InferenceSession(file.proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"input_1": batch}
        )[0]
        for file, batch in ((model, by_hand), (embedded, by_contract))
    )
    assert np.array_equal(found, expected)


@pytest.fixture
def write(contract: Contract, tmp_path: Path) -> Callable[..., Path]:
    """Exports a small network under a name with a space and gives the folder for DeepStream."""

    def written(plan: ServedPlan = NO_PLAN, **changes: Any) -> Path:
        source = averaging(tmp_path / "my net.onnx", replace(contract, **changes))
        write_deepstream(source, plan, tmp_path / "ds", silent)
        return tmp_path / "ds"

    return written


@pytest.mark.parametrize(("precision", "mode"), [("fp32", "0"), ("int8", "1"), ("fp16", "2")])
def test_nvinfer_builds_in_the_precision_of_the_file(write: Callable[..., Path], precision: str, mode: str) -> None:
    config = read_config(write(precision=precision))
    assert config["network-mode"] == mode
    assert config["model-engine-file"] == f"my_net.onnx_b8_gpu0_{precision}.engine"
    assert (config["network-type"], config["output-blob-names"], config["batch-size"]) == ("1", "predictions", "8")


def test_unknown_frames_get_no_label(write: Callable[..., Path]) -> None:
    """nvinfer names a class above its threshold, the contract's rule one that is not below."""
    threshold = np.float32(0.61)
    written = np.float32(read_config(write(reject=Reject(0.05, float(threshold))))["classifier-threshold"])
    assert written < threshold
    assert np.nextafter(written, np.float32(1)) == threshold
    assert read_config(write())["classifier-threshold"] == "0.0"


def test_labels_stand_in_one_line_as_nvinfers_classifier_reads_them(write: Callable[..., Path]) -> None:
    classes = ("a cat", "größe, 3", "x'\"y", "#4", "p")
    folder = write(classes=classes)
    (line,) = (folder / read_config(folder)["labelfile-path"]).read_text(encoding="utf-8").splitlines()
    assert tuple(line.split(";")) == classes


@pytest.mark.parametrize(("crop", "kept"), [("none", "0"), ("center", "1")])
def test_the_aspect_is_kept_where_the_training_kept_it(
    write: Callable[..., Path], contract: Contract, crop: Any, kept: str
) -> None:
    folder = write(preprocessing=replace(contract.preprocessing, crop=crop))
    config = read_config(folder)
    assert config["maintain-aspect-ratio"] == config["symmetric-padding"] == kept
    readme = (folder / "README.md").read_text()
    assert ("nvvideoconvert src-crop=" in readme) == (crop == "center")
    assert ("is stretched to 32×32" in readme) == (crop == "none")


@pytest.mark.parametrize("frame", [(1920, 1080), (640, 480), (480, 640)])
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (96, 64)])
def test_the_crop_in_the_readme_is_the_middle_that_the_network_was_trained_on(
    frame: tuple[int, int], size: tuple[int, int]
) -> None:
    """Held against Pillow's own center crop on ramps, whose values tell where a pixel came from."""
    pixels = Preprocessing(1, size[1], size[0], "center", "bilinear", "gray", 1.0, (0.0,), (1.0,))
    left, top, width, height = crop_in_frame(frame, pixels)
    assert (left % 2, top % 2, width % 2, height % 2) == (0, 0, 0, 0)
    for axis, length in enumerate(frame):
        ramp = np.linspace(0, 255, length)
        image = Image.fromarray(np.broadcast_to(ramp if axis == 0 else ramp[:, None], frame[::-1]).astype(np.uint8))
        trained = pillow.fit(image, pixels)[:, :, 0].astype(float)
        cropped = image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BILINEAR)
        # One pixel of the network's input, as the training rounds sizes and offsets to whole ones, and 8 bits twice.
        one_pixel = 255 / (length * max((want + 32) / have for want, have in zip(size, frame, strict=True)))
        assert np.abs(np.asarray(cropped, float) - trained).max() <= one_pixel + 1.5


@pytest.fixture
def plan(contract: Contract, tmp_path: Path) -> ServedPlan:
    """A plan of TensorRT, as far as its sidecar says."""
    path = tmp_path / "tuned.engine"
    path.write_bytes(b"plan")
    profile = Profile(1, 4, 16)
    write_sidecar(path, Sidecar(contract, file_sha256(path), "tensorrt", "10.3", ("8.7",), "Orin", profile, "n", ""))
    return ServedPlan(path, profile, "built with TensorRT 10.3, which must run it")


def test_a_plan_goes_along_with_its_sidecar(write: Callable[..., Path], plan: ServedPlan) -> None:
    folder = write(plan)
    config = read_config(folder)
    assert (config["model-engine-file"], config["batch-size"]) == ("my_net.engine", "4")
    assert read_plan(folder / "my_net.engine", read_sidecar(folder / "my_net.engine")) == b"plan"


def test_a_plan_for_normalized_pixels_stays_out_where_the_file_takes_pixels(
    write: Callable[..., Path], plan: ServedPlan
) -> None:
    folder = write(plan, preprocessing=TORCH)
    config = read_config(folder)
    assert config["model-engine-file"] == "my_net.pixels.onnx_b4_gpu0_fp32.engine"
    assert not list(folder.glob("*.engine"))
    assert "takes normalized pixels" in (folder / "nvinfer_config.txt").read_text()
    assert read_contract(folder / config["onnx-file"]).preprocessing.divisor == 1


def test_a_file_that_answers_otherwise_is_not_handed_over(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def skewed(model: OnnxModel) -> OnnxModel:
        embedded = embed_normalization(model)
        (mean,) = (tensor for tensor in embedded.proto.graph.initializer if tensor.name == "input_1_mean")
        mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean)[::-1].copy(), mean.name))
        return embedded

    monkeypatch.setattr(writer, "embed_normalization", skewed)
    with pytest.raises(ExportError, match="does not answer as the network does"):
        write(preprocessing=TORCH)
    assert list((tmp_path / "ds").iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "profile", "message"),
    [
        (("a;b", "c"), Profile(1, 8, 32), "'a;b'.*rename"),
        (("a\nb", "c"), Profile(1, 8, 32), "line breaks"),
        (("a", "c"), Profile(2, 8, 32), "use --min-batch 1"),
        (("a", "c"), Profile(1, 2048, 4096), "use --opt-batch 1024"),
    ],
)
def test_what_deepstream_can_not_run_is_refused(
    contract: Contract, classes: tuple[str, ...], profile: Profile, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        writer.check_request(replace(contract, classes=classes), profile)


def test_a_file_that_takes_8_bit_pixels_is_refused(contract: Contract) -> None:
    embedded = replace(contract, preprocessing=replace(contract.preprocessing, embedded=True))
    with pytest.raises(RequestError, match="leave --embed-preprocessing out"):
        writer.check_request(embedded, Profile(1, 8, 32))


def test_embedding_for_8_bit_pixels_is_refused_together_with_deepstream(
    contract: Contract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = averaging(tmp_path / "net.onnx", contract)
    flags = ["--builder", "none", "--embed-preprocessing", "--deepstream", str(tmp_path / "ds")]
    assert main(["export", "-m", str(source), "-o", str(tmp_path / "out.onnx"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "leave it out" in line
    assert list(tmp_path.iterdir()) == [source]


def test_a_class_that_can_not_be_labeled_is_refused_before_the_export(
    contract: Contract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = averaging(tmp_path / "net.onnx", replace(contract, classes=("a;b", "c")))
    flags = ["--builder", "none", "--deepstream", str(tmp_path / "ds")]
    assert main(["export", "-m", str(source), "-o", str(tmp_path / "out.onnx"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'a;b'" in line
    assert list(tmp_path.iterdir()) == [source]
