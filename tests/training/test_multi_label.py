"""Multi-label training: average precision in the curve, thresholds in the checkpoint, the same numbers when resumed."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.composites import CLASSES, write_composites
from trt_cls import spec
from trt_cls.artefacts.model_file import read_contract
from trt_cls.data.augmentation import smoothed_labels
from trt_cls.data.labels_csv import labeled_folder
from trt_cls.data.split import halves, training_datasets
from trt_cls.data.stream import stream
from trt_cls.distributed.processes import ALONE
from trt_cls.engines import open_engine
from trt_cls.evaluation.evaluate import evaluate_labels
from trt_cls.evaluation.multi_label import chosen_thresholds
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.spec.experiment import Experiment, Extensions
from trt_cls.training.compute import choose_compute
from trt_cls.training.run import train
from trt_cls.training.state import Interrupted
from trt_cls.training.validation import BrokenImages, validate_labels

LABELED = Extensions(labels="labels.csv", best_metric="mAP")
Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def composites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("composites")
    write_composites(root / "train", 22, seed=1)  # three steps
    write_composites(root / "val", 24, seed=2)
    (root / "val" / "000.png").rename(root / "val" / "unlisted.png")
    return root


@pytest.fixture(scope="module")
def made(composites: Path, experiment: Make, quiet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multi")
    train(experiment(root=composites, extensions=LABELED), folder, device="cpu", reporter=quiet())
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*(folder / "weights").iterdir(), folder / "training.csv"]}


def test_a_checkpoint_has_the_thresholds_of_half_of_validation_and_the_curve_its_map(
    made: Path, composites: Path, experiment: Make
) -> None:
    rows = list(csv.DictReader((made / "training.csv").read_text().splitlines()))
    assert "val_balanced_accuracy" not in rows[0]
    contract = read_contract(made / "weights" / "best.safetensors")
    assert (contract.task, contract.classes) == ("multi", CLASSES)
    config = experiment(root=composites, extensions=LABELED)
    folder = training_datasets(config.train_config, LABELED)[1].labeled(CLASSES)  # type: ignore[arg-type]
    engine = open_engine(made / "weights" / "best.safetensors", "cpu")
    found = evaluate_labels(engine, folder, batch_size=5, workers=0)
    best = max(rows, key=lambda row: float(row["val_map"]))
    assert found.metrics.map == pytest.approx(float(best["val_map"]), abs=1e-6)
    assert found.metrics.exact_match == pytest.approx(float(best["val_acc"]), abs=1e-6)
    assert found.metrics.loss == pytest.approx(float(best["val_loss"]), abs=1e-6)
    second = set(halves(folder.samples)[1])
    kept = [sample in second for sample in found.predictions.samples]
    expected = chosen_thresholds(found.predictions.probabilities[kept], found.truth[kept], 0.0)
    assert contract.thresholds == pytest.approx(expected, abs=1e-6)
    assert [image.path.name for image in found.predictions.skipped] == ["unlisted.png", "000.png"]


class Share:
    """One of two processes, which knows what the other gathers."""

    def __init__(self, other: Share | None = None) -> None:
        self.size, self.gathered, self._other = 2, [], iter(other.gathered) if other else None

    def gather(self, value: Any) -> list[Any]:
        self.gathered.append(value)
        return [value] if self._other is None else [value, next(self._other)]


def test_two_processes_validate_as_one(made: Path, composites: Path) -> None:
    module, compute = load_checkpoint(made / "weights" / "best.safetensors").module, choose_compute("cpu", "fp32", 1)
    folder = labeled_folder(composites / "val", "labels.csv")
    preprocessing = read_contract(made / "weights" / "best.safetensors").preprocessing

    def validated(share: int, of: int, processes: Any) -> Any:
        batches = stream(folder.samples[share::of], preprocessing, batch_size=1, workers=0)
        return validate_labels(module, batches, compute, BrokenImages(folder), processes, folder, 0.0)

    second = Share()
    validated(1, 2, second)
    assert str(validated(0, 2, Share(second))) == str(validated(0, 1, ALONE))


def test_the_page_shows_the_labels_of_its_pictures(made: Path) -> None:
    text = (made / "training.html").read_text()
    assert "Mean average precision" in text
    assert "no label" in text
    assert "Top-1 accuracy" not in text


@pytest.mark.parametrize(("epoch", "step"), [(1, 2), (2, 1)])
def test_a_resumed_training_gives_the_same_files(
    made: Path, composites: Path, experiment: Make, quiet: Any, tmp_path: Path, epoch: int, step: int
) -> None:
    asked = experiment(root=composites, extensions=LABELED)
    stop = partial(signal.raise_signal, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(asked, tmp_path, device="cpu", reporter=quiet(epoch, step, stop))
    torch.manual_seed(1)
    train(asked, tmp_path, device="cpu", reporter=quiet(), resume=True)
    assert files(tmp_path) == files(made)


def test_targets_are_smoothed_around_a_half_and_the_loss_is_torch_s(
    composites: Path, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    targets = smoothed_labels([(0, 2), ()], 3, 0.2)
    np.testing.assert_allclose(targets, [[0.9, 0.1, 0.9], [0.1, 0.1, 0.1]], rtol=1e-6)
    asked = experiment(
        root=composites, extensions=LABELED, batch_size_per_gpu=22, n_epochs=1, label_smoothing=0.2, mixup_alpha=0.3
    )
    result = train(asked, tmp_path, device="cpu", reporter=quiet())
    assert 0.3 < result.rows[0].loss < 3  # of one step: ln 2, more or less
    assert load_file(result.last)


def test_the_resolved_spec_names_map_and_is_read_again(composites: Path, experiment: Make) -> None:
    text = spec.show(experiment(root=composites)).replace("labels: ''", "labels: 'labels.csv'")
    text = text.replace('labels: ""', 'labels: "labels.csv"').replace('best_metric: "top_1"', "")
    assert 'labels: "labels.csv"' in text
    loaded = spec.loads(text)
    assert loaded.extensions.best_metric == "mAP"
    assert spec.loads(spec.show(loaded)) == loaded
