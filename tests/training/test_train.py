"""What a training leaves behind, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from support.pixel_reference import preprocess
from trt_cls import spec
from trt_cls.artefacts.classmap import read_classmap, write_classmap
from trt_cls.data.folder import image_folder
from trt_cls.errors import ArtefactError, DataError, DeviceError, RequestError, TrtClsError
from trt_cls.models.checkpoint import load_checkpoint
from trt_cls.preprocessing.images import decode
from trt_cls.spec.experiment import (
    ClearmlConfig,
    CosineLr,
    Experiment,
    LrConfig,
    ModelConfig,
    Optimizer,
    Sgd,
    StepLr,
    Visualizer,
)
from trt_cls.training.loop import TrainingResult
from trt_cls.training.run import train

Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, experiment: Make, quiet: Any) -> TrainingResult:
    visualizer = Visualizer(enabled=True, num_images=2, weight_histograms=True)
    request = experiment(n_epochs=3, visualizer=visualizer)
    return train(request, tmp_path_factory.mktemp("results") / "run", device="cpu", reporter=quiet())


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "training.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_folder_holds_the_promised_files_and_nothing_else(done: TrainingResult) -> None:
    root = done.results.root
    events = next((root / "events").iterdir()).name
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {
        "weights/resnet_001.safetensors",
        "weights/resnet_002.safetensors",
        "weights/resnet_003.safetensors",
        "weights/best.safetensors",
        "train_state.pt",
        "classmap.json",
        "status.json",
        "training.csv",
        "training.html",
        "experiment_spec.txt",
        f"events/{events}",
    }


def test_curve_has_a_row_per_epoch_and_the_rate_of_its_last_step(done: TrainingResult) -> None:
    written = rows(done.results.root)
    columns = ["epoch", "acc", "loss", "lr", "val_acc", "val_loss"]
    assert list(written[0]) == [*columns, "penalty", "val_penalty", "val_balanced_accuracy", "val_macro_f1"]
    assert [row["epoch"] for row in written] == [1, 2, 3]
    # cosine after a warm-up of a fifth of nine steps; the last step begins at 8/9
    share = (8 / 9 - 0.2) / 0.8
    expected = 0.02 * (1 + torch.cos(torch.tensor(torch.pi * share)).item()) / 2
    assert written[2]["lr"] == pytest.approx(expected, rel=1e-4)


def test_checkpoint_gives_the_figures_of_its_row(done: TrainingResult, images: Path) -> None:
    from sklearn import metrics as sklearn

    checkpoint = load_checkpoint(done.last)
    folder = image_folder(images / "val")
    assert checkpoint.contract.classes == folder.classes
    inputs = [preprocess(decode(sample.path, 3), checkpoint.contract.preprocessing) for sample in folder.samples]
    labels = torch.tensor([sample.label for sample in folder.samples])
    with torch.no_grad():
        logits = checkpoint.module(torch.stack([torch.from_numpy(image) for image in inputs]))
    kernels = [tensor for tensor in load_file(done.last).values() if tensor.dim() > 1]
    penalty = 1e-4 * sum((kernel.double() ** 2).sum().item() for kernel in kernels)
    row = rows(done.results.root)[-1]
    assert row["val_acc"] == (logits.argmax(1) == labels).double().mean().item()
    assert row["val_loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert row["val_penalty"] == pytest.approx(penalty, rel=1e-5)
    answers = logits.argmax(1)
    assert row["val_balanced_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(labels, answers))
    assert row["val_macro_f1"] == pytest.approx(sklearn.f1_score(labels, answers, average="macro"))
    recalls = sklearn.recall_score(labels, answers, average=None)
    assert done.rows[-1].recalls == pytest.approx(recalls.tolist())


def test_best_is_the_checkpoint_of_the_best_validation_accuracy(done: TrainingResult) -> None:
    written = rows(done.results.root)
    best = max(written, key=lambda row: (row["val_acc"], -row["val_loss"]))
    assert done.best.epoch == best["epoch"]
    of_epoch = done.results.root / f"weights/resnet_{int(best['epoch']):03d}.safetensors"
    assert done.results.best.read_bytes() == of_epoch.read_bytes()


def test_status_has_a_json_object_a_line_with_taos_keys(done: TrainingResult) -> None:
    lines = [json.loads(line) for line in (done.results.root / "status.json").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["STARTED", "RUNNING", "RUNNING", "RUNNING", "SUCCESS"]
    assert all({"date", "time", "verbosity", "message"} <= line.keys() for line in lines)
    assert {"epoch", "max_epoch", "time_per_epoch", "eta", "graphical", "kpi"} <= lines[1].keys()
    second = rows(done.results.root)[1]
    assert lines[2]["graphical"]["validation_accuracy"] == second["val_acc"]
    assert lines[2]["graphical"]["loss"] == second["loss"] + second["penalty"], "TAO's sum"
    assert lines[2]["kpi"]["validation_loss"] == second["val_loss"] + second["val_penalty"]


def test_events_hold_curves_images_and_histograms(done: TrainingResult) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(done.results.events)).Reload()
    assert [point.step for point in events.Scalars("val_acc")] == [1, 2, 3]
    assert [point.value for point in events.Scalars("loss")] == pytest.approx([row.loss for row in done.rows])
    shown = events.Images("training images")
    assert [(image.step, image.width, image.height) for image in shown] == [(1, 32, 16), (2, 32, 16), (3, 32, 16)]
    assert "conv1.weight" in events.Tags()["histograms"]


def test_resolved_spec_reads_back_as_the_same_experiment(done: TrainingResult, experiment: Make) -> None:
    read = spec.load(done.results.spec)
    assert read.model_config == experiment().model_config
    assert read.train_config is not None
    assert read.train_config.n_epochs == 3


def test_state_is_loaded_without_running_code(done: TrainingResult) -> None:
    state = torch.load(done.results.state, weights_only=True)
    assert (state["epoch"], state["step"]) == (4, 0)


def test_classmap_decides_the_order_of_classes(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    classmap = tmp_path / "map.json"
    write_classmap(classmap, ("red", "green", "blue"))
    result = train(experiment(n_epochs=1), tmp_path / "run", classmap=classmap, device="cpu", reporter=quiet())
    assert read_classmap(result.results.classmap) == ("red", "green", "blue")
    assert load_checkpoint(result.last).contract.classes == ("red", "green", "blue")


def test_a_rate_of_nearly_nothing_leaves_the_first_weights(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    still = LrConfig(step=StepLr(learning_rate=1e-30, step_size=50, gamma=0.5))
    result = train(experiment(lr_config=still), tmp_path, device="cpu", reporter=quiet())
    first, second = (load_file(tmp_path / f"weights/resnet_00{epoch}.safetensors") for epoch in (1, 2))
    assert torch.equal(first["conv1.weight"], second["conv1.weight"])
    assert result.rows[0].lr == 1e-30
    assert result.rows[1].lr == 0.5e-30


def test_init_epoch_counts_on_from_a_pretrained_model(
    done: TrainingResult, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    request = experiment(n_epochs=3, pretrained_model_path=str(done.results.checkpoint("resnet", 2)))
    result = train(request, tmp_path, init_epoch=3, device="cpu", reporter=quiet())
    assert [row.epoch for row in result.rows] == [3]
    assert result.last == tmp_path / "weights/resnet_003.safetensors"
    assert result.rows[0].lr == done.rows[2].lr


def test_broken_images_are_listed_once_and_training_goes_on(
    experiment: Make, quiet: Any, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "images")
    broken = [tmp_path / "images/train/red/03.png", tmp_path / "images/val/green/01.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    result = train(experiment(root=tmp_path / "images"), tmp_path / "run", device="cpu", reporter=quiet())
    assert [image.path for image in result.skipped] == broken
    assert len(result.rows) == 2


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_without_a_readable_image_is_an_error(
    part: str, experiment: Make, quiet: Any, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "images")
    for path in (tmp_path / "images" / part / "green").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match=r"class 'green' has no image that can be read"):
        train(experiment(root=tmp_path / "images"), tmp_path / "run", device="cpu", reporter=quiet())
    last = json.loads((tmp_path / "run/status.json").read_text().splitlines()[-1])
    assert last["status"] == "FAILURE"


def test_a_step_whose_images_broke_but_for_one_is_left_out(
    experiment: Make, quiet: Any, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "images")
    for path in sorted((tmp_path / "images/train").rglob("*.png")):
        if path.stem not in ("00", "01"):
            path.write_text("no image")
    request = experiment(root=tmp_path / "images", batch_size_per_gpu=2, n_epochs=1)
    result = train(request, tmp_path / "run", device="cpu", reporter=quiet())
    assert result.steps_left_out > 0
    assert len(result.skipped) == 15


def test_a_loss_that_is_no_number_is_an_error(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    wild = LrConfig(cosine=CosineLr(learning_rate=1e30))
    with pytest.raises(TrtClsError, match=r"epoch 1: the training loss is (nan|inf)") as failure:
        train(experiment(lr_config=wild), tmp_path, device="cpu", reporter=quiet())
    assert failure.value.exit_code == 1


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (
            {"model_parallelism": (0.5, 0.5), "model": ModelConfig(arch="torchvision/resnet18")},
            {},
            "model_parallelism: 2 shares, but torchvision/resnet18 can't be split",
        ),
        ({"model_parallelism": (1.0, 1e-9)}, {}, "leaves a device without one"),
        ({"visualizer": Visualizer(enabled=True, clearml_config=ClearmlConfig())}, {}, "clearml_config: not supported"),
        ({"batch_size_per_gpu": 1}, {}, "batch_size_per_gpu: 1, but batch normalization"),
        ({}, {"precision": "fp16"}, "--precision fp16: not on a CPU"),
        ({}, {"init_epoch": 2}, "--init-epoch 2 without train_config.pretrained_model_path"),
        ({"pretrained_model_path": "x.safetensors"}, {"init_epoch": 3}, "--init-epoch 3: expected 1 to"),
        ({}, {"resume": True}, "nothing to resume"),
    ],
)
def test_what_can_not_be_met_is_refused(
    given: dict[str, Any], options: dict[str, Any], message: str, experiment: Make, quiet: Any, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        train(experiment(**given), tmp_path, **{"device": "cpu", "reporter": quiet(), **options})
    assert "\n" not in str(refusal.value)


def test_a_finished_training_is_neither_overwritten_nor_resumed(
    done: TrainingResult, experiment: Make, quiet: Any
) -> None:
    before = done.results.best.read_bytes()
    with pytest.raises(RequestError, match=r"holds a training already.*--resume.*-r"):
        train(experiment(n_epochs=3), done.results.root, device="cpu", reporter=quiet())
    with pytest.raises(RequestError, match="all 3 epochs are done"):
        train(experiment(n_epochs=3), done.results.root, device="cpu", reporter=quiet(), resume=True)
    assert done.results.best.read_bytes() == before


def test_checkpoints_without_a_state_are_not_overwritten(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/resnet_080.safetensors").write_bytes(b"precious")
    with pytest.raises(RequestError, match="holds checkpoints already"):
        train(experiment(), tmp_path, device="cpu", reporter=quiet())


def test_a_truncated_state_is_named(done: TrainingResult, experiment: Make, quiet: Any, tmp_path: Path) -> None:
    shutil.copytree(done.results.root, tmp_path / "run")
    state = tmp_path / "run/train_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ArtefactError, match=r"train_state\.pt: can't be read"):
        train(experiment(n_epochs=3), tmp_path / "run", device="cpu", reporter=quiet(), resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="--device cuda: torch finds no GPU"):
        train(experiment(), tmp_path, device="cuda", reporter=quiet())


def test_a_step_in_bf16_trains_float32_weights(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    reporter = quiet()
    result = train(experiment(n_epochs=1), tmp_path, device="cpu", precision="bf16", reporter=reporter)
    assert "bf16 (as requested)" in reporter.lines[0]
    assert {tensor.dtype for tensor in load_file(result.last).values() if tensor.is_floating_point()} == {torch.float32}


def test_frozen_blocks_keep_their_weights(experiment: Make, quiet: Any, tmp_path: Path) -> None:
    model = ModelConfig(n_layers=10, input_image_size="3,16,16", use_batch_norm=True, freeze_blocks=(0, 1))
    train(experiment(model=model, optimizer=Optimizer(sgd=Sgd())), tmp_path, device="cpu", reporter=quiet())
    first, second = (load_file(tmp_path / f"weights/resnet_00{epoch}.safetensors") for epoch in (1, 2))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert not {"conv1.weight", "block_1a_conv_1.weight"} & changed
    assert {"block_2a_conv_1.weight", "predictions.weight"} <= changed
