"""Rules of the extensions block, with values just inside and just outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.spec_texts import PENALTY, problems, spec_text
from trt_cls.errors import SpecError
from trt_cls.spec import load, loads

NO_CROP = "enable_random_crop: false"
EPOCHS = "n_epochs: 3"
TRAINED = "pretrained_model_path: 'model.safetensors'"
STAGES = "model_parallelism: 0.5 model_parallelism: 0.5 batch_size_per_gpu: 8"


def text(extensions: str, train: str = "") -> str:
    network = 'input_image_size: "3,32,48"'
    penalty = 'reg_config { type: "None" }' if "optimizer" in extensions else PENALTY
    return f"{spec_text(model=network, train=train, penalty=penalty)}extensions {{ {extensions} }}\n"


@pytest.mark.parametrize(
    ("extensions", "train"),
    [
        ("", ""),
        ("labels: 'labels.csv' threshold_precision: 1 best_metric: 'macro_f1'", ""),
        ("crop_padding: 31", NO_CROP),
        ("rand_augment { } cutmix_alpha: 1 random_erasing: 1", ""),
        ("rand_augment { num_ops: 1 magnitude: 30 }", ""),
        ("ema_decay: 0.9999 clip_grad_norm: 1e-9 accumulate_steps: 1 early_stopping_patience: 0", ""),
        ("average_checkpoints: 3", EPOCHS),
        ("random_resized_crop { min_scale: 1 } trivial_augment: true repeated_augment: 1 bce_loss: true", NO_CROP),
        ("optimizer { adamw { weight_decay: 0 } } layer_decay: 1", ""),
        ("progressive_resizing { }", ""),
        ("progressive_resizing { initial_scale: 0.99 delay_fraction: 0.5 finetune_fraction: 0.5 }", ""),
        ("progressive_resizing { initial_scale: 1e-9 delay_fraction: 0 finetune_fraction: 1 size_increment: 1 }", ""),
        ("gradient_checkpointing: true", "model_parallelism: 1"),
        ("optimizer { lamb { } } layer_decay: 1e-9", ""),
        ("optimizer { lion { beta_1: 0 } }", ""),
        ("optimizer { muon { momentum: 0 } } warm_up_steps: 1", ""),
        ("microbatches: 4", STAGES),
        ("quantization { calibration_batches: 1 keep: 'first' keep: 'last' }", TRAINED),
        ("distillation { teacher: 'a.onnx' temperature: 0.1 weight: 1 }", ""),
        ("class_weights { method: 'effective' beta: 0.9999 power: 0.5 } focal_gamma: 2", ""),
        ("balanced_sampling: true focal_gamma: 0.5", ""),
    ],
)
def test_allowed(extensions: str, train: str) -> None:
    assert not problems(text(extensions, train))


@pytest.mark.parametrize(
    ("field", "found", "extensions", "train"),
    [
        ("crop_padding", "2 found with train_config.enable_random_crop true (the default)", "crop_padding: 2", ""),
        ("crop_padding", "enable_random_crop true, expected", "crop_padding: 2", "enable_random_crop: true"),
        ("crop_padding", "less than the network's shorter side, 32", "crop_padding: 32", NO_CROP),
        ("crop_padding", "an integer ≥ 0", "crop_padding: -1", NO_CROP),
        ("rand_augment.num_ops", "an integer ≥ 1", "rand_augment { num_ops: 0 }", ""),
        ("optimizer", "an empty block found, expected exactly one of adamw, ", "optimizer { }", ""),
        ("optimizer.lion", "found beside adamw", "optimizer { adamw { } lion { } }", ""),
        ("optimizer.muon.momentum", "a number in [0, 1)", "optimizer { muon { momentum: 1 } }", ""),
        ("random_resized_crop", "found with train_config.enable_random_crop true", "random_resized_crop { }", ""),
        ("random_resized_crop", "with crop_padding 2", "random_resized_crop { } crop_padding: 2", NO_CROP),
        ("random_resized_crop.min_scale", "0.5 found, expected at most max_scale, 0.4",
         "random_resized_crop { min_scale: 0.5 max_scale: 0.4 }", NO_CROP),
        ("random_resized_crop.min_ratio", "2.0 found, expected at most max_ratio, 1.3",
         "random_resized_crop { min_ratio: 2 }", NO_CROP),
        ("trivial_augment", "with extensions.rand_augment", "trivial_augment: true rand_augment { }", ""),
        ("bce_loss", "with extensions.distillation", "bce_loss: true distillation { teacher: 'a' }", ""),
        ("drop_path", '0.1 found with arch "resnet", expected an EfficientNet', "drop_path: 0.1", ""),
        ("gradient_checkpointing", "true found with 2 shares in train_config.model_parallelism",
         "gradient_checkpointing: true", STAGES),
        ("progressive_resizing.initial_scale", "a number in (0, 1)", "progressive_resizing { initial_scale: 1 }", ""),
        ("progressive_resizing.size_increment", "an integer ≥ 1", "progressive_resizing { size_increment: 0 }", ""),
        ("progressive_resizing.delay_fraction", "0.9 found with finetune_fraction 0.2, expected at most 1",
         "progressive_resizing { delay_fraction: 0.9 }", ""),
        ("early_stopping_patience", "5 found with progressive_resizing",
         "progressive_resizing { } early_stopping_patience: 5", ""),
        ("repeated_augment", "an integer ≥ 1", "repeated_augment: 0", ""),
        ("layer_decay", "a number in (0, 1]", "layer_decay: 0", ""),
        ("warm_up_steps", "an integer ≥ 0", "warm_up_steps: -1", ""),
        ("rand_augment.magnitude", "an integer from 0 to 30", "rand_augment { magnitude: 31 }", ""),
        ("random_erasing", "a number in [0, 1]", "random_erasing: 1.1", ""),
        ("cutmix_alpha", "a number in [0, 1]", "cutmix_alpha: -0.1", ""),
        ("ema_decay", "a number in [0, 1)", "ema_decay: 1", ""),
        ("clip_grad_norm", "a number in [0, inf)", "clip_grad_norm: inf", ""),
        ("accumulate_steps", "an integer ≥ 1", "accumulate_steps: 0", ""),
        ("early_stopping_patience", "an integer ≥ 0", "early_stopping_patience: -1", ""),
        ("average_checkpoints", "4 found, expected at most train_config.n_epochs, 3", "average_checkpoints: 4", EPOCHS),
        ("microbatches", "2 found with 0 shares in train_config.model_parallelism", "microbatches: 2", ""),
        ("microbatches", "5 found, expected at most half of train_config.batch_size", "microbatches: 5", STAGES),
        ("quantization", "found without train_config.pretrained_model_path", "quantization { }", ""),
        ("quantization.keep", "one of first, last", "quantization { keep: 'all' }", TRAINED),
        ("quantization.calibration_batches", "an integer ≥ 1", "quantization { calibration_batches: 0 }", TRAINED),
        ("quantization.calibration_method", "one of auto", "quantization { calibration_method: 'max' }", TRAINED),
        ("distillation.teacher", "missing", "distillation { }", ""),
        ("class_weights", "balanced_sampling true, and either", "class_weights { } balanced_sampling: true", ""),
        ("class_weights.method", "one of inverse, effective", "class_weights { method: 'auto' }", ""),
        ("class_weights.beta", "a number in [0, 1)", "class_weights { beta: 1 }", ""),
        ("class_weights.power", "a number in (0, 1]", "class_weights { power: 0 }", ""),
        ("focal_gamma", "a number in [0, inf)", "focal_gamma: -1", ""),
        ("labels", 'expected the name of a file, as in "labels.csv"', "labels: 'a/labels.csv'", ""),
        ("class_weights", "found with extensions.labels", "labels: 'l.csv' class_weights { }", ""),
        ("balanced_sampling", "found with extensions.labels", "labels: 'l.csv' balanced_sampling: true", ""),
        ("focal_gamma", "found with extensions.labels", "labels: 'l.csv' focal_gamma: 2", ""),
        ("bce_loss", "found with extensions.labels", "labels: 'l.csv' bce_loss: true", ""),
        ("distillation", "found with extensions.labels", "labels: 'l.csv' distillation { teacher: 'a' }", ""),
        ("best_metric", "expected one of mAP, macro_f1, loss", "labels: 'l.csv' best_metric: 'top_1'", ""),
        ("best_metric", "mAP found without extensions.labels", "best_metric: 'mAP'", ""),
        ("threshold_precision", "0.9 found without extensions.labels", "threshold_precision: 0.9", ""),
        ("threshold_precision", "a number in [0, 1]", "labels: 'l.csv' threshold_precision: 2", ""),
        ("distillation.temperature", "a number > 0", "distillation { teacher: 'a' temperature: 0 }", ""),
        ("distillation.weight", "a number in (0, 1]", "distillation { teacher: 'a' weight: 0 }", ""),
    ],
)  # fmt: skip
def test_refused(field: str, found: str, extensions: str, train: str) -> None:
    [problem] = problems(text(extensions, train))
    assert problem.path == f"extensions.{field}"
    assert found in problem.message


def test_gradient_checkpointing_is_not_for_torchvision() -> None:
    given = spec_text(model='arch: "torchvision/resnet18"') + "extensions { gradient_checkpointing: true }"
    [problem] = problems(given)
    assert problem.path == "extensions.gradient_checkpointing"
    assert 'with arch "torchvision/resnet18", expected a built-in network or one of timm' in problem.message


def test_all_are_off_unless_asked_for() -> None:
    given = loads(spec_text()).extensions
    off = {name: value for name, value in vars(given).items() if not value}
    others = {"accumulate_steps", "microbatches", "layer_decay", "best_metric", "repeated_augment"}
    assert off.keys() | others == vars(given).keys()
    assert given.accumulate_steps == given.microbatches == given.layer_decay == given.repeated_augment == 1
    assert given.best_metric == "top_1"


def test_top_k_has_no_meaning_with_several_labels() -> None:
    [problem] = problems(spec_text(evaluation="top_k: 3") + "extensions { labels: 'labels.csv' }")
    assert problem.path == "eval_config.top_k"
    assert "3 found with extensions.labels" in problem.message


def test_shards_have_no_place_for_several_labels() -> None:
    [problem] = problems(text("labels: 'labels.csv'").replace('"val"', '"val-{0..3}.tar"'))
    assert problem.path == "train_config.val_dataset_path"
    assert "expected a folder with the file labels.csv" in problem.message


def test_decoupled_weight_decay_refuses_a_penalty_beside_it() -> None:
    [problem] = problems(spec_text() + "extensions { optimizer { adamw { } } }")
    assert problem.path == "extensions.optimizer"
    assert "found with train_config.reg_config.type L2, expected type None there" in problem.message


def test_one_way_to_warm_up() -> None:
    schedule = "lr_config { cosine { learning_rate: 0.1 soft_start: 0.1 } }"
    [problem] = problems(spec_text(schedule=schedule) + "extensions { warm_up_steps: 9 }")
    assert "9 found with soft_start 0.1 in train_config.lr_config, expected one of the two" in problem.message


def test_a_teacher_must_be_a_file(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    spec = tmp_path / "spec.txt"
    content = text(f"distillation {{ teacher: '{tmp_path}/teacher.onnx' }}")
    spec.write_text(content.replace('"train"', f'"{tmp_path}/train"').replace('"val"', f'"{tmp_path}/val"'))
    with pytest.raises(SpecError, match=r"extensions\.distillation\.teacher: .* is no such file"):
        load(spec, needs=("train_config",))
    (tmp_path / "teacher.onnx").touch()
    load(spec, needs=("train_config",))
