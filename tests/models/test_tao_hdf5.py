from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("h5py")

import numpy as np
import torch

from support.keras_file import Layers, Weights, calibrate, keras_layers, narrow, pruned, run, whole, write
from support.records import config, label, outline
from support.reference_weights import fill, images
from support.shared_data import layer_tables, tao_files, tao_json, tao_records
from trt_cls.contract import Contract
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint, widths
from trt_cls.models.pretrained import load_pretrained
from trt_cls.models.tao.network import Imported, import_network, require_same_answers
from trt_cls.preprocessing.description import default_preprocessing_of_tao
from trt_cls.spec.experiment import BatchNormConfig

SIZE = (3, 32, 64)
RECORDED = (3, 64, 96)
TABLES = layer_tables()
SLOW_TABLES = {"resnet101", "resnet50", "resnet34", "cspdarknet53", "darknet53", "vgg16_pool_head", "vgg19"}
SLOW_TABLES |= {"efficientnet_b1", "efficientnet_b0_head", "googlenet_head", "resnet18_head", "mobilenet_v2_noallproj"}
"""The layers of another table in other numbers, or a head that other families have too."""
RECORDS = [
    record
    for record in tao_records("forward_outputs.json")
    if record["input_size"] == list(RECORDED) and not record["options"]["act"] and record["options"]["bn"]
]
FAST_RECORDS = {"alexnet", "mobilenet_v1", "squeezenet"}
OPTIONS = ("use_batch_norm", "use_bias", "use_pooling", "all_projections", "retain_head")


def table(name: str) -> dict[str, Any]:
    record: dict[str, Any] = tao_json(f"layer_tables/{name}.json")
    return record


def table_name(record: dict[str, Any]) -> str:
    options = record["options"]
    suffix = {("resnet", True): "_pool", ("mobilenet_v2", False): "_noallproj"}
    extra = suffix.get((record["arch"], options["pool"] if record["arch"] == "resnet" else options["proj"]), "")
    return f"{record['arch']}{record['n_layers'] or ''}{extra}{'_head' if options['head'] else ''}"


def answers(imported: Imported, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        probabilities: np.ndarray = imported.module(torch.from_numpy(pixels)).softmax(1).numpy()
    return probabilities


def contract(imported: Imported) -> Contract:
    pixels = default_preprocessing_of_tao(imported.config.input_shape)
    return Contract(imported.config, pixels, tuple(map(str, range(imported.module.num_classes))))


def assert_answers(imported: Imported, layers: Layers, weights: Weights) -> None:
    """As the file's layers do, run one by one; in float64, where another order of summation is no excuse.

    Keras' slope of LeakyReLU is 0.1 in float32, which moves probabilities by 1e-7.
    """
    pixels = images(imported.config.input_shape).astype(np.float64)
    precise = {name: [array.astype(np.float64) for array in arrays] for name, arrays in weights.items()}
    with torch.no_grad():
        found = deepcopy(imported.module).double()(torch.from_numpy(pixels)).softmax(1).numpy()
    np.testing.assert_allclose(found, run(layers, precise, pixels), rtol=0, atol=1e-6)


def some(name: str, size: tuple[int, int, int] = SIZE) -> tuple[Layers, Weights]:
    """The layers and weights of a table with few channels, ready to be changed."""
    layers, weights = keras_layers(table(name), size, narrow)
    calibrate(layers, weights, images(size))
    return layers, weights


class Answered(NamedTuple):
    """A Keras file, and what it answered in TAO."""

    path: Path
    pixels: np.ndarray
    probabilities: np.ndarray
    bound: float
    pruned: bool
    params: int


PRUNED = [record for record in tao_records("prune_reference.json") if {"probs_after", "retained_idx"} <= record.keys()]
FILES = [*PRUNED, *tao_files()]


@pytest.fixture(scope="module", params=FILES, ids=[file.get("file", file["arch"]) for file in FILES])
def answered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    """By the recipe and as NVIDIA pruned it, or a file of TAO's itself where those are at hand."""
    file: dict[str, Any] = request.param
    if path := file.get("path"):
        expected, pruned_there = np.load(path.with_suffix(".npz")), file["pruning"] is not None
        bound = file["suggested_atol_probs"]
        return Answered(path, expected["input"], expected["output"], bound, pruned_there, file["params"])
    size = tuple(file["input_size"])
    made = pruned(*keras_layers(table(table_name(file)), size, whole), file["retained_idx"])
    path = write(tmp_path_factory.mktemp("tao") / "a.hdf5", *made)
    return Answered(path, images(size), np.array(file["probs_after"]), 1e-5, True, file["params_after"])


def test_a_file_of_taos_answers_as_it_did_there(answered: Answered, tmp_path: Path) -> None:
    imported = import_network(answered.path)
    expected, bound = answered.probabilities, answered.bound
    np.testing.assert_allclose(answers(imported, answered.pixels), expected, rtol=0, atol=bound)
    assert imported.pruned == answered.pruned
    tensors = imported.module.state_dict().values()
    assert sum(tensor.numel() for tensor in tensors if tensor.dim()) == answered.params
    save_checkpoint(tmp_path / "a.safetensors", imported.module, contract(imported))
    loaded = load_checkpoint(tmp_path / "a.safetensors").module
    with torch.no_grad():
        found = loaded(torch.from_numpy(answered.pixels)).softmax(1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.slow
def test_a_file_of_taos_answers_in_onnx_runtime_as_it_did_there(answered: Answered) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from trt_cls.export.torch_to_onnx import onnx_from_module

    imported = import_network(answered.path)
    graph = onnx_from_module(imported.module, contract(imported)).proto.SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_1": answered.pixels})
    np.testing.assert_allclose(found, answered.probabilities, rtol=0, atol=answered.bound)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW_TABLES else ()) for name in TABLES]
)
def test_every_network_of_taos_is_known_by_its_layers(name: str, tmp_path: Path) -> None:
    record = table(name)
    layers, weights = some(name)
    imported = import_network(write(tmp_path / "a.hdf5", layers, weights, record["model_name"]))
    assert imported.pruned
    assert imported.config.arch == record["arch"]
    assert imported.config.n_layers == (record["n_layers"] or 18)
    expected = outline(config(record | {"input_size": list(SIZE)}), tao_pooling=True)
    assert imported.module.steps == expected.steps
    assert_answers(imported, layers, weights)


@pytest.mark.parametrize(
    "record",
    [pytest.param(r, id=label(r), marks=() if r["arch"] in FAST_RECORDS else pytest.mark.slow) for r in RECORDS],
)
def test_recorded_forward_passes_come_out_of_a_file(record: dict[str, Any], tmp_path: Path) -> None:
    layers, weights = keras_layers(table(table_name(record)), RECORDED, whole)
    imported = import_network(write(tmp_path / "a.hdf5", layers, weights, compiled=True))
    assert not imported.pruned
    expected = fill(build(config(record), record["nclasses"], tao_pooling=True)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in imported.module.state_dict().items())
    np.testing.assert_allclose(answers(imported, images(RECORDED)), record["probs"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["mish", "relu"])
def test_the_activation_is_read_from_the_layer_and_not_from_its_name(kind: str, tmp_path: Path) -> None:
    layers, weights = some("cspdarknet_tiny")
    for layer in layers:
        if layer["class_name"] == "LeakyReLU":
            layer |= {"class_name": "Activation", "config": {"activation": kind}}
    imported = import_network(write(tmp_path / "a.hdf5", layers, weights))
    assert imported.config.activation is not None
    assert imported.config.activation.activation_type == kind
    assert_answers(imported, layers, weights)


@pytest.mark.parametrize(
    "name", ["resnet10", pytest.param("efficientnet_b0", marks=pytest.mark.slow), "vgg16_pool_head", "squeezenet_head"]
)
def test_gray_images(name: str, tmp_path: Path) -> None:
    gray = (1, 32, 64)
    layers, weights = some(name, gray)
    imported = import_network(write(tmp_path / "a.hdf5", layers, weights))
    assert imported.config.input_shape == gray
    assert_answers(imported, layers, weights)


def test_odd_sides_pad_efficientnet_otherwise(tmp_path: Path) -> None:
    record = deepcopy(table("efficientnet_b0"))
    kept = [layer for layer in record["layers"] if layer["name"] != "stem_conv_pad"]
    for layer in kept:
        layer["inputs"] = ["input_1" if name == "stem_conv_pad" else name for name in layer["inputs"]]
        if layer["name"] == "stem_conv":
            layer["padding"] = "same"
    odd = (3, 63, 95)
    layers, weights = keras_layers(record | {"layers": kept}, odd, narrow)
    calibrate(layers, weights, images(odd))
    imported = import_network(write(tmp_path / "a.hdf5", layers, weights))
    assert_answers(imported, layers, weights)


@pytest.mark.slow  # of 380 layers
def test_efficientnet_b2_is_distinguished_from_b1_by_its_name_or_its_widest_layer(tmp_path: Path) -> None:
    layers, weights = keras_layers(table("efficientnet_b1"), SIZE, narrow)
    by_name = import_network(write(tmp_path / "a.hdf5", layers, weights, "efficientnet-b2"))
    by_width = import_network(write(tmp_path / "b.hdf5", layers, weights, "model_1"))
    assert (by_name.config.arch, by_width.config.arch) == ("efficientnet_b2", "efficientnet_b1")


def test_mobilenets_own_head_looks_through_a_window_of_7_by_7(tmp_path: Path) -> None:
    layers, weights = keras_layers(table("mobilenet_v1"), (3, 256, 256), narrow)
    assert not import_network(write(tmp_path / "a.hdf5", layers, weights)).config.retain_head
    pool = next(layer for layer in layers if layer["name"] == "avg_pool")
    pool["config"] |= {"pool_size": [7, 7], "strides": [7, 7]}
    calibrate(layers, weights, images((3, 256, 256)))
    imported = import_network(write(tmp_path / "b.hdf5", layers, weights))
    assert imported.config.retain_head
    assert_answers(imported, layers, weights)


def test_use_bias_and_no_batch_norm_are_read_off(tmp_path: Path) -> None:
    record = table("vgg16")
    record = record | {"layers": [dict(layer) for layer in record["layers"]]}
    source = {layer["name"]: layer["inputs"][0] for layer in record["layers"] if layer["type"] == "BatchNormalization"}
    record["layers"] = [layer for layer in record["layers"] if layer["name"] not in source]
    for layer in record["layers"]:
        layer["inputs"] = [source.get(name, name) for name in layer["inputs"]]
        if layer["type"] == "Conv2D":
            layer |= {"use_bias": True, "weights": [*layer["weights"], ["bias", [layer["filters"]]]]}
    layers, weights = keras_layers(record, SIZE, narrow)
    calibrate(layers, weights, images(SIZE))
    imported = import_network(write(tmp_path / "a.hdf5", layers, weights))
    assert [getattr(imported.config, name) for name in OPTIONS] == [False, True, False, False, False]
    assert_answers(imported, layers, weights)


def test_constants_and_flags_of_the_training_are_read_off(tmp_path: Path) -> None:
    layers, weights = some("resnet10")
    for layer in layers:
        if layer["class_name"] == "BatchNormalization":
            layer["config"] |= {"epsilon": 0.01, "momentum": 0.75}
            layer["inbound_nodes"][0][0][3] = {"training": False}
        if layer["class_name"] == "Conv2D" and layer["name"].startswith(("conv1", "block_2")):
            layer["config"]["trainable"] = False
    imported = import_network(write(tmp_path / "a.hdf5", layers, weights))
    assert imported.config.batch_norm_config == BatchNormConfig(momentum=0.75, epsilon=0.01)
    assert imported.config.freeze_bn
    assert imported.config.freeze_blocks == (0, 2)
    assert_answers(imported, layers, weights)


def test_dropout_of_the_head_is_read_off(tmp_path: Path) -> None:
    imported = import_network(write(tmp_path / "a.hdf5", *some("vgg16_pool_head_dropout")))
    assert imported.config.dropout == 0.5


def test_an_imported_resnet_pools_as_tao_after_it_was_saved(tmp_path: Path) -> None:
    imported = import_network(write(tmp_path / "a.hdf5", *some("resnet18_pool", (3, 224, 224))))
    save_checkpoint(tmp_path / "a.safetensors", imported.module, contract(imported))
    loaded = load_checkpoint(tmp_path / "a.safetensors").module
    pixels = torch.from_numpy(images((3, 224, 224)))
    ours = build(imported.config, 10, widths(imported.module.state_dict()))
    ours.load_state_dict(imported.module.state_dict())
    with torch.no_grad():
        assert torch.allclose(loaded(pixels), imported.module(pixels), rtol=0, atol=1e-5)
        assert (ours.eval()(pixels) - loaded(pixels)).abs().max() > 0.01


def test_a_checkpoint_that_answers_otherwise_is_found_out(tmp_path: Path) -> None:
    imported = import_network(write(tmp_path / "a.hdf5", *some("alexnet")))
    save_checkpoint(tmp_path / "a.safetensors", imported.module, contract(imported))
    require_same_answers(tmp_path / "a.safetensors", imported.module)
    with torch.no_grad():
        imported.module.predictions.bias[0] += 0.1
    with pytest.raises(Exception, match="its logits differ"):
        require_same_answers(tmp_path / "a.safetensors", imported.module)


@pytest.mark.parametrize("name", ["resnet10", pytest.param("mobilenet_v1", marks=pytest.mark.slow)])
def test_training_starts_from_all_layers_of_a_file_but_the_head(name: str, tmp_path: Path) -> None:
    record = table(name)
    layers, weights = keras_layers(record, SIZE, whole)
    path = write(tmp_path / "a.hdf5", layers, weights)
    network = build(config(record | {"input_size": list(SIZE)}), 3)
    report = load_pretrained(network, path)
    assert report.new_head
    assert [mismatch.name for mismatch in report.mismatched] == ["predictions.weight", "predictions.bias"]
    assert not report.missing
    assert not report.unused
    assert torch.equal(network.conv1.weight, torch.from_numpy(weights["conv1"][0].transpose(3, 2, 0, 1)))
