"""Multi-label exports: a sigmoid in every precision, parity by labels, a temperature that keeps them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support.composites import CLASSES, write_composites
from trt_cls.artefacts.decoding import contract_from_json
from trt_cls.artefacts.model_file import read_contract
from trt_cls.artefacts.onnx_file import read_onnx
from trt_cls.contract import Contract
from trt_cls.data.labels_csv import labeled_folder
from trt_cls.engines import open_engine
from trt_cls.engines.classifier import load_classifier
from trt_cls.errors import ArtefactError, ExportError
from trt_cls.evaluation.evaluate import evaluate_labels
from trt_cls.evaluation.temperature import fitted_temperature_of_labels, logits_of, softened, softened_thresholds
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8
from trt_cls.export.parity import checked
from trt_cls.export.sample_images import images_for

if TYPE_CHECKING:
    from trt_cls.models.network import Network

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def composites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_composites(tmp_path_factory.mktemp("composites") / "images", 32, seed=3)


@pytest.fixture(scope="module")
def multi(composites: Path, contract: Contract, narrow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose head was fitted to the squares' colors by a few steps, and thresholds of its own."""
    import torch

    from support.calibration import calibrate
    from trt_cls.models import build
    from trt_cls.models.checkpoint import save_checkpoint

    torch.manual_seed(0)
    network: Network = build(contract.model, len(CLASSES))
    samples = labeled_folder(composites, "labels.csv").samples
    images = torch.from_numpy(np.concatenate(list(images_for(contract.preprocessing, composites).batches())))
    truth = torch.tensor([[float(label in sample.indices) for label in range(3)] for sample in samples])
    calibrate(network, images).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(12):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(images), truth).backward()
        optimizer.step()
    calibrate_only_norms(network, images)
    path = tmp_path_factory.mktemp("multi") / "multi.safetensors"
    described = replace(contract, classes=CLASSES, task="multi", thresholds=(0.4, 0.5, 0.6))
    save_checkpoint(path, network.eval(), described)
    return path


def calibrate_only_norms(network: Any, images: Any) -> None:
    """The statistics of batch normalization over `images`."""
    import torch

    with torch.no_grad():
        for norm in (layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)):
            norm.momentum = 1.0
        network.train()(images)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_ends_in_a_sigmoid_and_keeps_the_labels(
    multi: Path, composites: Path, tmp_path: Path, precision: Any
) -> None:
    said: list[str] = []
    options = {"int8": Int8(images=composites, method="minmax")} if precision == "int8" else {}
    result = export(
        multi, tmp_path / "m.onnx", precision=precision, images=composites, builder="none", say=said.append, **options
    )
    model = read_onnx(result.onnx)
    assert [node.op_type for node in model.proto.graph.node][-1] == "Sigmoid"
    assert (model.contract.task, model.contract.thresholds) == ("multi", (0.4, 0.5, 0.6))
    assert json.loads(model.contract.to_json())["format"] == 2
    assert "label agreement" in said[-1]
    assert not any("one folder" in line for line in said)
    with load_classifier(result.onnx, "cpu") as found, load_classifier(multi, "cpu") as expected:
        images = sorted(composites.glob("*.png"))
        probabilities = found.predict_proba(images)
        assert found.predict(images).tolist() == (probabilities >= [0.4, 0.5, 0.6]).tolist()
        if precision != "int8":
            bound = {"fp32": 1e-5, "fp16": 0.05}[precision]
            np.testing.assert_allclose(probabilities, expected.predict_proba(images), atol=bound)


def test_a_temperature_softens_the_sigmoid_and_moves_the_thresholds_with_it(
    multi: Path, composites: Path, tmp_path: Path
) -> None:
    noisy = shutil.copytree(composites, tmp_path / "noisy")
    rows = (noisy / "labels.csv").read_text().splitlines()
    rows[1::4] = [row.split(",")[0] + ",blue" for row in rows[1::4]]  # else the best temperature would be 0
    (noisy / "labels.csv").write_text("\n".join(rows))
    said: list[str] = []
    made = export(multi, tmp_path / "m.onnx", calibrate=True, images=noisy, builder="none", say=said.append)
    contract = read_contract(made.onnx)
    assert contract.temperature is not None
    assert contract.thresholds == softened_thresholds((0.4, 0.5, 0.6), contract.temperature)
    assert "labels unchanged on 32 images, 0 ties left out" in said[1]
    images = next(images_for(contract.preprocessing, composites).batches())
    before, after = (open_engine(path, "cpu").infer(images) for path in (multi, made.onnx))
    # float32 has few numbers just below 1, from which the logits are known to a few digits
    np.testing.assert_allclose(after, softened(before, contract.temperature, "multi"), atol=1e-4)


def test_the_temperature_of_synthetic_logits_is_recovered() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (40_000, 5))
    truth = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
    found = fitted_temperature_of_labels(logits * 1.7, truth)
    assert found == pytest.approx(1.7, abs=0.02)  # three standard errors of 200,000 labels
    exact = 1 / (1 + np.exp(-logits))
    assert fitted_temperature_of_labels(logits * 1.7, exact) == pytest.approx(1.7, abs=1e-9)
    probabilities = exact.astype(np.float32)
    near = np.abs(logits) < 8  # beyond, float32 has few numbers below 1
    np.testing.assert_allclose(logits_of(probabilities, "multi")[near], logits[near], atol=1e-3)
    np.testing.assert_allclose(softened(probabilities, 1.0, "multi"), probabilities, atol=1e-6)
    assert softened_thresholds((0.0, 0.5, 1.0), 3.0) == (0.0, 0.5, 1.0)


def test_parity_counts_labels_and_leaves_out_those_at_their_threshold(contract: Contract) -> None:
    images = images_for(contract.preprocessing, None)
    answers = np.tile(np.float32([[0.9, 0.3995, 0.1], [0.2, 0.7, 0.8]]), (8, 1))
    moved = answers + np.float32([[0, 0.001, 0], [0, 0, 0]] * 8)
    thresholds = (0.5, 0.4, 0.5)
    found = checked(lambda _: moved, lambda _: answers, images, "fp16", thresholds=thresholds)
    assert found.parity.top1_agreement == 1
    wrong = np.where(answers == np.float32(0.7), np.float32(0.38), answers)
    with pytest.raises(ExportError, match=r"label agreement 66\.67%"):
        checked(lambda _: wrong, lambda _: answers, images, "int8", thresholds=thresholds)
    (remark,) = checked(lambda _: answers[:1], lambda _: answers[:1], images, "fp32", thresholds=thresholds).remarks
    assert "gives all images the same labels" in remark


def test_layers_stay_in_float16_by_mean_average_precision(multi: Path, composites: Path, tmp_path: Path) -> None:
    said: list[str] = []
    asked = Int8(images=composites, method="minmax", max_loss=100.0)
    export(multi, tmp_path / "m.onnx", precision="int8", int8=asked, images=composites, builder="none", say=said.append)
    folder = labeled_folder(composites, "labels.csv")
    found = evaluate_labels(open_engine(multi, "cpu"), folder, batch_size=8, workers=0).metrics.map
    assert any(f"mAP on 32 images: float32 {found:.2%}" in line for line in said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": [0.5]}, "thresholds: 1 numbers found, expected 3 with task multi"),
        ({"thresholds": [0.5, 1.5, 0.5]}, r"thresholds\[1\]: 1.5 found, expected a number in \[0, 1\]"),
        ({"task": "single"}, "thresholds: 3 numbers found, expected 0 with task single"),
        ({"task": "both"}, "task: "),
    ],
)
def test_a_contract_whose_thresholds_do_not_fit_is_refused(
    contract: Contract, changes: dict[str, Any], message: str
) -> None:
    described = replace(contract, classes=CLASSES, task="multi", thresholds=(0.4, 0.5, 0.6))
    assert contract_from_json(described.to_json(), "x") == described
    with pytest.raises(ArtefactError, match=message):
        contract_from_json(json.dumps(json.loads(described.to_json()) | changes), "x")


def test_a_contract_of_one_class_an_image_is_written_as_before(contract: Contract) -> None:
    content = json.loads(contract.to_json())
    assert content["format"] == 1
    assert content.keys().isdisjoint({"task", "thresholds"})
