from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("h5py")

import h5py
import numpy as np

from support.keras_file import Layers, Weights, keras_layers, narrow, write
from support.shared_data import tao_json
from trt_cls.contract import Contract
from trt_cls.errors import ArtefactError
from trt_cls.models import build
from trt_cls.models.checkpoint import save_checkpoint
from trt_cls.models.pretrained import load_pretrained
from trt_cls.models.tao import hdf5
from trt_cls.models.tao.network import import_network, require_same_answers
from trt_cls.preprocessing.description import default_preprocessing_of_tao
from trt_cls.spec.experiment import ModelConfig

SIZE = (3, 32, 64)


def small(name: str) -> tuple[Layers, Weights]:
    return keras_layers(tao_json(f"layer_tables/{name}.json"), SIZE, narrow)


Change = Callable[[Layers, Weights], object]


def config_of(layers: Layers, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(layer for layer in layers if layer["name"] == name)["config"]
    return found


def setting(name: str, **values: Any) -> Change:
    return lambda layers, _: config_of(layers, name).update(values)


def narrower(layers: Layers, weights: Weights) -> None:
    weights["block_1a_conv_1"][0] = weights["block_1a_conv_1"][0][..., :-1]


def without_variance(layers: Layers, weights: Weights) -> None:
    del weights["bn_conv1"][3]


def without_weights(layers: Layers, weights: Weights) -> None:
    weights["block_3a_bn_1"].clear()


def not_a_number(layers: Layers, weights: Weights) -> None:
    weights["conv1"][0][0, 0, 0, 0] = np.nan


def negative_variance(layers: Layers, weights: Weights) -> None:
    weights["bn_conv1"][3][:] = -1


def whole_numbers(layers: Layers, weights: Weights) -> None:
    weights["conv1"][0] = weights["conv1"][0].astype(np.int32)


def called_twice(layers: Layers, weights: Weights) -> None:
    layers[3]["inbound_nodes"] *= 2


def one_skipped(layers: Layers, weights: Weights) -> None:
    layers[-3]["inbound_nodes"][0][0][0] = "block_4a_bn_2"


def of_nothing(layers: Layers, weights: Weights) -> None:
    layers[5]["inbound_nodes"][0][0][0] = "nothing"


def other_class(kind: str, **values: Any) -> Change:
    return lambda layers, _: layers[3].update(class_name=kind, config=layers[3]["config"] | values)


def without_softmax(layers: Layers, weights: Weights) -> None:
    config_of(layers, "predictions")["activation"] = "sigmoid"


def renamed(layers: Layers, weights: Weights) -> None:
    for layer in layers:
        layer["name"] = f"tower_{layer['name']}"
        for call in layer["inbound_nodes"]:
            for source in call:
                source[0] = f"tower_{source[0]}"
    for name in list(weights):
        weights[f"tower_{name}"] = weights.pop(name)


def padded_sum(layers: Layers, weights: Weights) -> None:
    index, add = next((index, layer) for index, layer in enumerate(layers) if layer["class_name"] == "Add")
    source = add["inbound_nodes"][0][1]
    pad = {"class_name": "ZeroPadding2D", "config": {"padding": [[1, 1], [1, 1]]}, "inbound_nodes": [[list(source)]]}
    layers.insert(index, {"name": "pad", **pad})
    weights["pad"] = []
    source[0] = "pad"


def exploding_graph(layers: Layers, weights: Weights) -> None:
    """2¹⁰⁰ paths from the image to the first convolution."""
    for number in range(100):
        source = f"double_{number - 1}" if number else "input_1"
        calls = [[[source, 0, 0, {}]] * 2]
        layers.insert(
            number + 1, {"name": f"double_{number}", "class_name": "Add", "config": {}, "inbound_nodes": calls}
        )
        weights[f"double_{number}"] = []
    layers[101]["inbound_nodes"][0][0][0] = "double_99"


REFUSED: dict[str, tuple[Change, str]] = {
    "another stride": (
        setting("block_2a_conv_1", strides=[1, 1]),
        r"layer 'block_2a_conv_1' does not fit: .*stride=\(1, 1\).* expected .*stride=\(2, 2\)",
    ),
    "another padding": (
        setting("conv1", padding="valid"),
        r"'conv1' does not fit: found Conv2d[^=]*=[^=]*=[^=]*=False\) of input_1, expected .*padding=\(3, 3\)",
    ),
    "another shortcut": (one_skipped, r"'avg_pool' does not fit: .* of block_4a_bn_2, expected Add"),
    "another constant of one normalization": (setting("block_1a_bn_1", epsilon=0.1), "'block_1a_bn_1' does not fit"),
    "another order of axes": (setting("conv1", data_format="channels_last"), "data_format 'channels_last'"),
    "dilation": (setting("conv1", dilation_rate=[2, 2]), "dilation"),
    "no softmax": (without_softmax, "'predictions' does not fit: found Sigmoid.* of predictions, expected Softmax"),
    "text for a number": (setting("block_1a_conv_1", kernel_size="33"), "can't be understood|does not fit"),
    "a stride of 0": (setting("conv1", strides=[0, 0]), "can't be understood|does not fit"),
    "no filters": (setting("conv1", filters=0), "'conv1' does not fit"),
    "a giant kernel": (setting("conv1", kernel_size=[10**9, 10**9]), "can't be understood"),
    "a padded map in a sum": (padded_sum, "can't be understood .it reads a padded map"),
    "a list for a number": (setting("conv1", filters=[8]), "'conv1' .*(can't be understood|does not fit)"),
    "more filters than weights": (setting("conv1", filters=10**9), "'conv1' does not fit"),
    "more classes than weights": (setting("predictions", units=10**9), "can't be built"),
    "an image too large": (setting("input_1", batch_input_shape=[None, 3, 10**6, 10**6]), "sides up to 4096"),
    "no size": (setting("input_1", batch_input_shape=[None, 3, None, None]), "expected one, of"),
    "five channels": (setting("input_1", batch_input_shape=[None, 5, 32, 64]), "1 or 3 channels"),
    "an unknown layer": (other_class("PReLU"), "no network of TAO's has such a layer"),
    "relu6": (other_class("ReLU", max_value=6.0), "no network of TAO's has the function clipped relu"),
    "a lambda": (other_class("Lambda", function=["code"]), "no network of TAO's has such a layer"),
    "other names": (renamed, "of no known family"),
    "weights of another shape": (narrower, "the first is block_1a_conv_1.weight|'block_1a_conv_1"),
    "weights left out": (without_variance, "has 3 arrays"),
    "no weights": (without_weights, "has 0 arrays"),
    "not a number": (not_a_number, "not finite"),
    "whole numbers": (whole_numbers, "no array of floating-point numbers"),
    "a layer called twice": (called_twice, "is called 2 times"),
    "a layer fed by none": (of_nothing, "can't be understood"),
    "a graph with too many paths": (exploding_graph, "'double_0' does not fit"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_is_no_such_network_is_refused(change: Change, message: str, tmp_path: Path) -> None:
    layers, weights = small("resnet10")
    change(layers, weights)
    with pytest.raises(ArtefactError, match=message) as caught:
        import_network(write(tmp_path / "a.hdf5", layers, weights))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a.hdf5") in str(caught.value)


def test_weights_that_answer_with_no_numbers_are_refused(tmp_path: Path) -> None:
    layers, weights = small("resnet10")
    negative_variance(layers, weights)
    imported = import_network(write(tmp_path / "a.hdf5", layers, weights))
    pixels = default_preprocessing_of_tao(SIZE)
    contract = Contract(imported.config, pixels, tuple("0123456789"))
    save_checkpoint(tmp_path / "a.safetensors", imported.module, contract)
    with pytest.raises(ArtefactError, match="not finite"):
        require_same_answers(tmp_path / "a.safetensors", imported.module)


KERNEL = "model_weights/conv1/conv1_3/kernel:0"


def model_config(text: str | bytes) -> Callable[[h5py.File], object]:
    return lambda file: file.attrs.__setitem__("model_config", text)


def soft_link(file: h5py.File) -> None:
    del file[KERNEL]
    file[KERNEL] = h5py.SoftLink("/model_weights/conv2/conv2_3/kernel:0")


def external_link(file: h5py.File) -> None:
    del file["model_weights/conv1"]
    file["model_weights/conv1"] = h5py.ExternalLink(os.path.basename(file.filename), "/model_weights/conv2")


def external_storage(file: h5py.File) -> None:
    shape = file[KERNEL].shape
    del file[KERNEL]
    file.create_dataset(KERNEL, shape, "f4", external=[("/etc/hostname", 0, 4 * int(np.prod(shape)))])


def virtual_storage(file: h5py.File) -> None:
    shape = file[KERNEL].shape
    del file[KERNEL]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("elsewhere.hdf5", "kernel", shape)
    file.create_virtual_dataset(KERNEL, layout)


def giant(file: h5py.File) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (11, 11, 10**6, 10**6), "f4", chunks=(1, 1, 100, 100))


def compressed_zeros(file: h5py.File) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (1000, 1000, 100), "f4", compression="gzip", fillvalue=0)


def objects(file: h5py.File) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, data=["a", "b"], dtype=h5py.string_dtype())


def group_for_data(file: h5py.File) -> None:
    del file[KERNEL]
    file.create_group(KERNEL)


def names_of_numbers(file: h5py.File) -> None:
    file["model_weights/conv1"].attrs["weight_names"] = [1.0, 2.0]


def no_weights_group(file: h5py.File) -> None:
    del file["model_weights"]


def same_name(file: h5py.File) -> None:
    content = json.loads(file.attrs["model_config"])
    content["config"]["layers"].append(content["config"]["layers"][-1])
    file.attrs["model_config"] = json.dumps(content)


DAMAGED: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "no model_config": (lambda file: file.attrs.__delitem__("model_config"), "no model_config"),
    "no JSON": (model_config("{"), "can't be read"),
    "a number": (model_config("3"), "can't be read"),
    "null layers": (model_config(json.dumps({"class_name": "Model", "config": {"layers": None}})), "can't be read"),
    "a list of models": (model_config("[]"), "can't be read"),
    "a sequential model": (model_config(json.dumps({"class_name": "Sequential", "config": []})), "functional Model"),
    "deep nesting": (model_config("[" * 100_000), "can't be read"),
    "a number of a million digits": (model_config("1" * 10**6), "can't be read"),
    "bytes that are no text": (model_config(np.void(b"\xff\xfe")), "can't be read"),
    "a name used twice": (same_name, "the same name"),
    "no weights": (no_weights_group, "no 'model_weights'"),
    "a soft link": (soft_link, "no 'kernel:0' of its own"),
    "a link to another file": (external_link, "no 'conv1' of its own"),
    "data in another file": (external_storage, "kept in another file"),
    "data of other files": (virtual_storage, "kept in another file"),
    "more than the file holds": (giant, "more than the file holds"),
    "compressed nothing": (compressed_zeros, "more than the file holds"),
    "text for weights": (objects, "no array of floating-point numbers"),
    "a group for weights": (group_for_data, "no array of floating-point numbers"),
    "numbers for names": (names_of_numbers, "weight_names of /model_weights/conv1 is no text"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_hostile_file_is_refused(damage: Callable[[h5py.File], object], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", *small("alexnet"))
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(ArtefactError, match=message) as caught:
        import_network(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", *small("alexnet"))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtefactError, match="can't be read as a Keras model"):
        import_network(path)


@pytest.mark.parametrize(("name", "message"), [("none.hdf5", "does not exist"), (".", "is a folder")])
def test_what_is_no_file_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=message):
        import_network(tmp_path / name)


def test_a_pretrained_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.hdf5").write_bytes(b"encrypted")
    with pytest.raises(ArtefactError, match="can't be read as a Keras model"):
        load_pretrained(build(ModelConfig(arch="alexnet", input_image_size="3,32,32"), 2), tmp_path / "a.hdf5")


@pytest.mark.parametrize(
    ("reading", "reported"),
    [("os.abort()", "ended by signal 6"), ("time.sleep(60)", "did not end within 1 s")],
)
def test_a_file_that_libhdf5_does_not_survive_ends_another_process(
    reading: str, reported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fatal.py").write_text(f"import os, time\ndef read_keras_model(path): {reading}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(hdf5, "__name__", "fatal")
    monkeypatch.setattr(hdf5, "TRIAL_SECONDS", 1)
    with pytest.raises(ArtefactError, match=reported):
        hdf5.require_readable(tmp_path / "model.hdf5")
