"""Each promise of the README in a few lines, on a network of a second: `pytest tests/test_tiny.py` takes half a minute.

Where a promise is tested in earnest, that file's name stands behind the test's.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import trt_cls
from trt_cls.artefacts.model_file import read_contract
from trt_cls.cli import main
from trt_cls.preprocessing.cpu import preprocess

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("narrow")

CLASSES = ("blue", "green", "red")
SPEC = """
model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,16,16" use_batch_norm: true }}
train_config {{
  train_dataset_path: "{data}/train" val_dataset_path: "{data}/val" batch_size_per_gpu: 8 n_epochs: 5 n_workers: 0
  random_seed: 7 preprocess_mode: "torch" enable_center_crop: false
  reg_config {{ type: "L2" weight_decay: 0.0001 }}
  optimizer {{ sgd {{ momentum: 0.9 }} }}
  lr_config {{ cosine {{ learning_rate: 0.01 soft_start: 0.2 }} }}
}}
eval_config {{ eval_dataset_path: "{data}/val" batch_size: 5 enable_center_crop: false }}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 and 12 images of colored noise: the last batches are not full."""
    root, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(1)
    for part, images in (("train", 7), ("val", 4)):
        for channel, name in enumerate(reversed(CLASSES)):
            (root / part / name).mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 120, (20, 26, 3), dtype=np.uint8)
                pixels[..., channel] += 90
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    (root / "spec.txt").write_text(SPEC.format(data=root))
    return root


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    assert main(["train", "-e", str(data / "spec.txt"), "-r", str(data / "run")]) == 0
    return data / "run/weights/best.safetensors"


@pytest.fixture(scope="module")
def exported(trained: Path, data: Path) -> Path:
    arguments = ["--images", str(data / "val"), "--builder", "none"]
    assert main(["export", "-m", str(trained), "-o", str(data / "model.onnx"), *arguments]) == 0
    return data / "model.onnx"


def test_one_spec_drives_everything(data: Path, capsys: pytest.CaptureFixture[str]) -> None:  # spec/
    assert main(["spec", "check", str(data / "spec.txt")]) == 0
    capsys.readouterr()
    assert main(["spec", "check", str(data / "spec.txt"), "--set", "train_config.n_epoch=3"]) == 2
    assert "n_epochs" in capsys.readouterr().err


def test_pixels_are_pillows(exported: Path, data: Path) -> None:  # preprocessing/
    path = data / "val/red/0.png"
    with Image.open(path) as image:
        resized = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR), np.float32)
        expected = (resized / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        found = preprocess(np.asarray(image), read_contract(exported).preprocessing)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_a_training_repeats_to_the_bit(trained: Path, data: Path) -> None:  # training/test_repeatability.py
    assert main(["train", "-e", str(data / "spec.txt"), "-r", str(data / "again")]) == 0
    assert (data / "again/weights/best.safetensors").read_bytes() == trained.read_bytes()


def test_the_exported_file_answers_as_the_network(  # export/test_parity.py
    trained: Path, exported: Path, data: Path
) -> None:
    images = sorted((data / "val").rglob("*.png"))
    network, file = (trt_cls.load(path).predict_proba(images) for path in (trained, exported))
    np.testing.assert_allclose(file, network, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_is_met_in_the_graph(precision: str, exported: Path, data: Path) -> None:  # export/
    onnx = pytest.importorskip("onnx")
    output = data / f"{precision}.onnx"
    arguments = [f"--{precision}", "-e", str(data / "spec.txt"), "--images", str(data / "val"), "--builder", "none"]
    assert main(["export", "-m", str(exported), "-o", str(output), *arguments]) == 0
    assert read_contract(output).precision == precision
    kind, operators = onnx.TensorProto.FLOAT16, [node.op_type for node in onnx.load(output).graph.node]
    if precision == "int8":
        assert operators.count("QuantizeLinear") >= operators.count("Conv") > 0
    else:
        assert {weight.data_type for weight in onnx.load(output).graph.initializer if weight.dims} >= {kind}


def test_an_engine_is_pristine_and_its_sidecar_knows_it(
    exported: Path, data: Path
) -> None:  # export/test_engine_file.py
    pytest.importorskip("tensorrt_rtx")
    engine = data / "model.engine"
    arguments = ["--engine", str(engine), "--builder", "tensorrt-rtx", "--images", str(data / "val")]
    assert main(["export", "-m", str(exported), "-o", str(data / "same.onnx"), *arguments]) == 0
    assert read_contract(engine).classes == CLASSES
    assert json.loads(Path(f"{engine}.json").read_text())


def test_no_image_is_left_out(exported: Path, data: Path, tmp_path: Path) -> None:  # evaluation/
    spec = str(data / "spec.txt")
    assert main(["evaluate", "-e", spec, "-m", str(exported), "-r", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert results["top_1_accuracy"] == pytest.approx(right / 12)


def test_a_foreign_model_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:  # artefacts/
    (data / "foreign.onnx").write_bytes(b"\x08\x0a")
    assert main(["infer", "-m", str(data / "foreign.onnx"), "-i", str(data / "val")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_two_fifths_of_the_work_are_pruned_and_it_retrains(trained: Path, data: Path) -> None:  # pruning/
    pruned = data / "pruned.safetensors"
    asked = ["--target-flops", "0.6", "-nf", "8", "-pg", "8", "--no-latency"]
    assert main(["prune", "-m", str(trained), "-o", str(pruned), *asked]) == 0
    assert pruned.stat().st_size < trained.stat().st_size
    retrain = ["--set", f"train_config.pretrained_model_path={pruned}", "--set", "train_config.n_epochs=1"]
    assert main(["train", "-e", str(data / "spec.txt"), "-r", str(data / "retrained"), *retrain]) == 0


def test_servers_get_the_models_own_numbers(exported: Path, data: Path) -> None:  # serving/
    servers = ["--deepstream", str(data / "deepstream"), "--triton", str(data / "triton"), "--builder", "none"]
    arguments = ["-m", str(exported), "-o", str(data / "served.onnx"), "--images", str(data / "val")]
    assert main(["export", *arguments, *servers]) == 0
    assert (data / "deepstream/labels.txt").read_text().replace("\n", ";").strip(";") == ";".join(CLASSES)
    assert list((data / "triton").rglob("config.pbtxt"))
