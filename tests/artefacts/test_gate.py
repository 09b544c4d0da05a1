"""What a file says is typed and within its range, or refused in one line that names file and field."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from support.tiny_models import CONTRACT, write_onnx
from trt_cls.artefacts.classmap import read_classmap
from trt_cls.artefacts.decoding import contract_from_json
from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import PARITY_KEY, read_onnx
from trt_cls.artefacts.sidecar import Parity, Profile, Sidecar, read_sidecar, sidecar_path, write_sidecar
from trt_cls.contract import METADATA_KEY, Conformal, Reject
from trt_cls.engines import open_engine
from trt_cls.engines.onnx_graph import read_graph
from trt_cls.errors import ArtefactError, DataError

SIDECAR = Sidecar(
    CONTRACT, "0" * 64, "tensorrt", "10.3.0", ("8.7", "8.9"), "Orin", Profile(1, 8, 32), "m.onnx", "f" * 64,
    Parity(12, 1.0, 2e-6, "12 images"),
)  # fmt: skip
WRONG = [
    ("preprocessing.height", 0),
    ("preprocessing.height", -5),
    ("preprocessing.height", "224"),
    ("preprocessing.height", 10**9),
    ("preprocessing.width", 10**30),
    ("preprocessing.width", True),
    ("preprocessing.channels", 0),
    ("preprocessing.channels", 2),
    ("preprocessing.crop", "x"),
    ("preprocessing.filter", "x"),
    ("preprocessing.channel_order", "gray"),
    ("preprocessing.divisor", 0),
    ("preprocessing.divisor", 1e308),
    ("preprocessing.divisor", None),
    ("preprocessing.mean", [0.0, 0.0]),
    ("preprocessing.mean", ["a", "b", "c"]),
    ("preprocessing.std", [1.0, 0.0, 1.0]),
    ("preprocessing.std", [1.0, -1.0, 1.0]),
    ("preprocessing.embedded", 1),
    ("precision", "fp99"),
    ("classes", []),
    ("classes", "red"),
    ("classes", ["red", "green", "red"]),
    ("classes", ["red", 7, "blue"]),
    ("classes", ["red", "", "blue"]),
    ("classes", ["red", "a\0", "blue"]),
    ("classes", ["x" * 5000]),
    ("classes", [str(index) for index in range(100_001)]),
    ("model.arch", ["resnet"]),
    ("model.arch", "unknown"),
    ("model.n_layers", 7),
    ("model.dropout", 1.5),
    ("model.input_image_size", "3,-16,16"),
    ("model.input_image_size", "1,16,16"),
    ("model.batch_norm_config", {"momentum": 0.9, "epsilon": 0}),
    ("model.activation", {"activation_type": "x"}),
    ("model.freeze_blocks", [99] * 1000),
    ("model.unknown", 1),
    ("format", 3),
    ("temperature", 0.01),
    ("temperature", 21),
    ("producer", 3),
]


def changed(content: dict[str, Any], path: str, value: object) -> str:
    inner = content
    *blocks, name = path.split(".")
    for block in blocks:
        inner = inner[block]
    inner[name] = value
    return json.dumps(content)


def one_line(error: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 1000
    for part in parts:
        assert part in text


@pytest.mark.parametrize(("path", "value"), WRONG, ids=[f"{path}={str(value)[:20]!r}" for path, value in WRONG])
def test_a_contract_beyond_its_ranges_is_refused(path: str, value: object) -> None:
    with pytest.raises(ArtefactError) as error:
        contract_from_json(changed(json.loads(CONTRACT.to_json()), path, value), "m.onnx")
    one_line(error, "m.onnx: its contract can't be read: ", path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_a_number_that_is_none_is_refused(number: str) -> None:
    text = CONTRACT.to_json().replace("255.0", number)
    with pytest.raises(ArtefactError) as error:
        contract_from_json(text, "m.onnx")
    one_line(error, "m.onnx: its contract can't be read: ")


NOT_JSON = ["", "null", "[]", "{", "[" * 100_000, '{"a":' * 100_000, '{"classes": ["\\ud800"]}', "\ud800", "\xff"]


@pytest.mark.parametrize("text", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_text_that_is_no_contract_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError) as error:
        contract_from_json(text, "m.onnx")
    one_line(error, "m.onnx: its contract can't be read: ")
    sidecar_path(tmp_path / "m.engine").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ArtefactError) as error:
        read_sidecar(tmp_path / "m.engine")
    one_line(error, "m.engine.json: can't be read: ")
    (tmp_path / "c.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(DataError) as error:
        read_classmap(tmp_path / "c.json")
    one_line(error, "c.json")


def test_a_sound_contract_comes_back_to_the_byte() -> None:
    assert contract_from_json(CONTRACT.to_json(), "").to_json() == CONTRACT.to_json()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("contract.preprocessing.height", 0),
        ("contract.format", 3),
        ("contract.temperature", 21.0),
        ("sha256", "zz"),
        ("onnx", "../m.onnx"),
        ("onnx", ""),
        ("builder", "other"),
        ("compute_capabilities", []),
        ("compute_capabilities", ["; rm"]),
        ("profile", {"minimum": 8, "optimum": 1, "maximum": 32}),
        ("profile.maximum", 10**9),
        ("profile.minimum", "1"),
        ("parity.top1_agreement", 2.0),
        ("parity.images", -1),
        ("parity", 3),
        ("command", "x" * 10_000),
        ("extra\u202e", 1),
    ],
)
def test_a_sidecar_beyond_its_ranges_is_refused(path: str, value: object, tmp_path: Path) -> None:
    plan = tmp_path / "m.engine"
    write_sidecar(plan, SIDECAR)
    assert read_sidecar(plan) == SIDECAR
    sidecar_path(plan).write_text(changed(json.loads(sidecar_path(plan).read_text()), path, value))
    with pytest.raises(ArtefactError) as error:
        read_sidecar(plan)
    one_line(error, "m.engine.json: can't be read: ", path.split(".")[0].rstrip("\u202e"))


def test_a_pipe_is_no_sidecar_and_no_class_map(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.json")
    with pytest.raises(DataError, match="expected a regular file"):
        read_classmap(tmp_path / "c.json")


def test_a_class_map_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"dog": 1, "cat": 0}', encoding="utf-8-sig")
    assert read_classmap(tmp_path / "c.json") == ("cat", "dog")


@pytest.mark.parametrize("text", ['{"": 0}', '{"\\ud800": 0}', '{"a": true}', '{"a": 0.0}', f'{{"a": {"9" * 9000}}}'])
def test_a_class_map_of_other_things_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError) as error:
        read_classmap(tmp_path / "c.json")
    one_line(error, "c.json")


def weights_elsewhere(model: onnx.ModelProto, location: str, offset: int) -> None:
    tensor = model.graph.initializer[0]
    length = len(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, location, offset, length)
    tensor.ClearField("raw_data")


READERS = [read_graph, read_onnx, lambda path: open_engine(path, "cpu")]


@pytest.mark.parametrize("read", READERS, ids=["inspect", "export", "evaluate"])
@pytest.mark.parametrize(
    ("location", "offset"), [("/etc/passwd", 0), ("../w.bin", 0), ("w.bin", 2**62), ("missing.bin", 0), ("w.bin", -1)]
)
def test_weights_in_another_file_are_refused(
    read: Callable[[Path], object], location: str, offset: int, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(1000))
    (tmp_path / "in").mkdir()
    model = onnx.load(write_onnx(tmp_path / "in" / "m.onnx"))
    weights_elsewhere(model, location, offset)
    (tmp_path / "in" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError) as error:
        read(tmp_path / "in" / "m.onnx")
    one_line(error, "m.onnx: keeps the weight 'weight' in another file")


def version_of_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 2**31


def without_outputs(model: onnx.ModelProto) -> None:
    del model.graph.node[1].output[:]


def type_of_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def size_of_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**62, 2**62]


def foreign_operation(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "foreign"


@pytest.mark.parametrize("read", READERS, ids=["inspect", "export", "evaluate"])
@pytest.mark.parametrize(
    "damage", [version_of_opset, without_outputs, type_of_weight, size_of_weight, foreign_operation]
)
def test_a_graph_that_can_not_be_read_is_refused(
    damage: Callable[[onnx.ModelProto], None], read: Callable[[Path], object], tmp_path: Path
) -> None:
    model = onnx.load(write_onnx(tmp_path / "m.onnx"))
    damage(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError) as error:
        read(tmp_path / "m.onnx")
    one_line(error, "m.onnx")


@pytest.mark.parametrize(
    "content",
    [
        b"\x72\x00",
        b"\x72\x00" * 10_001,
        b"\x72\x06" + b"\x0a\x00" * 3,
        b"\x72\x04\x0a\x7fab",
        b"\x72\x03\x0a\x01\xff",
        b"\x3a" + b"\xff" * 9 + b"\x01",
        b"\x3a" + b"\xff" * 100,
        b"\x08",
        b"\x0b" * 100_000,
        b"\x0d" + bytes(4),
    ],
    ids=[
        "empty", "many entries", "many fields", "beyond its entry", "no UTF-8", "huge length", "endless length",
        "no value", "groups", "fixed",
    ],
)  # fmt: skip
def test_metadata_that_can_not_be_read_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ArtefactError) as error:
        read_contract(tmp_path / "m.onnx")
    one_line(error, "m.onnx")


def test_a_contract_is_read_without_the_weights(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value=CONTRACT.to_json())
    graph = b"\x3a\x80\x80\x80\x40"  # field 7 with 2^27 bytes
    with (tmp_path / "m.onnx").open("wb") as file:
        file.write(model.SerializeToString() + graph)
        file.truncate(file.tell() + 2**27)
    tracemalloc.start()
    try:
        assert read_contract(tmp_path / "m.onnx") == CONTRACT
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_parity_in_the_file_is_decoded_too(tmp_path: Path) -> None:
    model = onnx.load(write_onnx(tmp_path / "m.onnx"))
    model.metadata_props.add(key=PARITY_KEY, value='{"images": "3"}')
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtefactError, match=r"m.onnx: its parity can't be read: images"):
        read_onnx(tmp_path / "m.onnx")


def test_a_file_larger_than_protobuf_takes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(2**31)
    for read in (read_contract, read_graph):
        with pytest.raises(ArtefactError, match=r"m\.onnx: has 2,147,483,648 bytes"):
            read(tmp_path / "m.onnx")


@pytest.mark.parametrize("rule", [{"conformal": Conformal(0.9, 0.5)}, {"reject": Reject(0.1, 0.5)}])
def test_a_rule_that_several_labels_would_ignore_is_refused(rule: dict[str, Any]) -> None:
    text = replace(CONTRACT, task="multi", thresholds=(0.5,) * len(CONTRACT.classes), **rule).to_json()
    with pytest.raises(ArtefactError, match="found with task multi"):
        contract_from_json(text, "file")
