from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from support.shared_data import TAO_SPEC
from support.spec_texts import problems, spec_text
from trt_cls.errors import SpecError
from trt_cls.spec import load, loads

ROOT = Path(__file__).parents[2]


def test_a_spec_written_for_tao_loads_as_it_is() -> None:
    experiment = load(TAO_SPEC, needs=["train_config", "eval_config"], paths=False)
    model, train, evaluation = experiment.model_config, experiment.train_config, experiment.eval_config
    assert train is not None
    assert evaluation is not None
    assert (model.arch, model.n_layers, model.input_shape) == ("resnet", 101, (3, 224, 224))
    assert model.resize_interpolation_method == "BICUBIC"
    assert (model.use_batch_norm, model.use_bias, model.all_projections) == (True, False, False)
    assert (model.use_pooling, model.retain_head) == (True, True)
    assert (train.batch_size_per_gpu, train.n_epochs, train.n_workers) == (50, 150, 16)
    assert (train.mixup_alpha, train.label_smoothing, train.preprocess_mode) == (0.2, 0.1, "caffe")
    assert train.image_mean == {"b": 103.9, "g": 116.8, "r": 123.7}
    assert train.pretrained_model_path == "/workspace/pretrained/resnet_101.hdf5"
    assert vars(train.reg_config) == {"type": "L2", "scope": "Conv2D,Dense", "weight_decay": 0.000015}
    assert train.optimizer.sgd is not None
    assert vars(train.optimizer.sgd) == {"lr": 0.01, "momentum": 0.9, "decay": 0.0, "nesterov": False}
    assert train.lr_config.cosine is not None
    assert vars(train.lr_config.cosine) == {"learning_rate": 0.04, "min_lr_ratio": 0.0, "soft_start": 0.0}
    assert (evaluation.top_k, evaluation.batch_size, evaluation.n_workers) == (3, 256, 8)
    assert evaluation.model_path == "/workspace/results/weights/resnet_080.tlt"


@pytest.mark.parametrize("spec", sorted(ROOT.glob("specs/*.txt")), ids=lambda path: path.name)
def test_the_specs_of_this_repository_are_valid(spec: Path) -> None:
    load(spec, needs=["train_config", "eval_config"], paths=False)


def test_what_a_tao_spec_leaves_out_takes_the_documented_default() -> None:
    experiment = load(TAO_SPEC, paths=False)
    model, train = experiment.model_config, experiment.train_config
    assert train is not None
    assert (model.freeze_bn, model.freeze_blocks, model.dropout, model.activation) == (False, (), 0.0, None)
    assert (model.batch_norm_config.momentum, model.batch_norm_config.epsilon) == (0.9, 1e-5)
    assert (train.random_seed, train.disable_horizontal_flip, train.visualizer.enabled) == (42, False, False)


def test_defaults_are_the_documented_ones_and_never_zeros() -> None:
    experiment = loads(
        spec_text(
            evaluation="", optimizer="optimizer { adam { } }", schedule="lr_config { soft_anneal { learning_rate: 1 } }"
        )
    )
    model, train, evaluation = experiment.model_config, experiment.train_config, experiment.eval_config
    assert train is not None
    assert evaluation is not None
    assert (model.arch, model.n_layers, model.input_image_size) == ("resnet", 18, "3,224,224")
    assert model.resize_interpolation_method == "BILINEAR"
    assert (train.batch_size_per_gpu, train.n_epochs, train.n_workers, train.random_seed) == (32, 120, 10, 42)
    assert (train.enable_random_crop, train.enable_center_crop, train.enable_color_augmentation) == (True, True, True)
    assert (train.label_smoothing, train.mixup_alpha, train.preprocess_mode) == (0.1, 0.2, "caffe")
    assert train.optimizer.adam is not None
    assert vars(train.optimizer.adam) == {"lr": 0.01, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "decay": 0.0}
    assert train.lr_config.soft_anneal is not None
    assert (train.lr_config.soft_anneal.annealing_divider, train.lr_config.soft_anneal.soft_start) == (10, 0)
    assert (evaluation.top_k, evaluation.batch_size, evaluation.n_workers) == (5, 256, 8)
    assert evaluation.enable_center_crop is True


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("caffe", "3,224,224", {"b": 103.939, "g": 116.779, "r": 123.68}),
        ("caffe", "1,32,32", {"l": 117.3786}),
        ("torch", "3,224,224", {}),
        ("tf", "1,32,32", {}),
    ],
)
def test_means_left_out_are_resolved(mode: str, size: str, expected: dict[str, float]) -> None:
    train = loads(spec_text(f'input_image_size: "{size}"', f'preprocess_mode: "{mode}"')).train_config
    assert train is not None
    assert train.image_mean == expected


def test_means_that_have_no_effect_are_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    means = "".join(f"image_mean {{ key: '{key}' value: 1 }}" for key in "bgr")
    train = loads(spec_text(train=f'preprocess_mode: "torch"\n{means}'), name="spec.txt").train_config
    assert train is not None
    assert train.image_mean == {}
    [record] = caplog.records
    assert record.getMessage().startswith("spec.txt:11: train_config.image_mean: no effect")


def test_a_section_that_a_command_needs_is_asked_for() -> None:
    [problem] = problems(spec_text(), needs=["train_config", "eval_config"])
    assert (problem.where, problem.path) == ("spec.txt", "eval_config")
    assert "missing" in problem.message


def test_folders_of_the_needed_sections_must_exist(tmp_path: Path) -> None:
    spec, (train, val, test) = tmp_path / "spec.txt", (tmp_path / name for name in ("train", "val", "test"))
    text = spec_text(train=f'pretrained_model_path: "{tmp_path / "model"}"', evaluation='model_path: "nowhere"')
    for folder in (train, val, test):
        text = text.replace(f'"{folder.name}"', f'"{folder}"')
    spec.write_text(text)
    train.mkdir()
    test.write_text("a file")

    load(spec)
    with pytest.raises(SpecError) as error:
        load(spec, needs=["train_config", "eval_config"])
    assert [problem.path for problem in error.value.problems] == [
        "train_config.val_dataset_path",
        "train_config.pretrained_model_path",
        "eval_config.eval_dataset_path",
    ]
    with pytest.raises(SpecError) as error:
        load(spec, needs=["eval_config"])
    assert [problem.path for problem in error.value.problems] == ["eval_config.eval_dataset_path"]

    val.mkdir()
    test.unlink()
    test.mkdir()
    (tmp_path / "model").touch()
    load(spec, needs=["train_config", "eval_config"])


@pytest.mark.parametrize("arch", ["torchvision/resnet18", "timm/resnet18", "resnet"])
def test_the_hub_is_no_file_and_has_weights_for_networks_of_libraries_alone(arch: str, tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    text = spec_text(f'arch: "{arch}"', 'pretrained_model_path: "hub"')
    text = text.replace('"train"', f'"{tmp_path}/train"').replace('"val"', f'"{tmp_path}/val"')
    if "/" in arch:
        loads(text, needs=["train_config"], paths=True)
        return
    with pytest.raises(SpecError, match=r'"hub" is no such file.*"hub" is for networks of torchvision and timm'):
        loads(text, needs=["train_config"], paths=True)


def test_an_empty_path_is_no_folder(tmp_path: Path) -> None:
    text = spec_text(evaluation="").replace('"test"', '""')
    with pytest.raises(SpecError, match="eval_dataset_path"):
        loads(text, needs=["eval_config"], paths=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no field found"),
        (b"# nothing but words\n\n", "no field found"),
        (b"\x7fELF\0\0\0", "binary file"),
        (b'model_config { arch: "r\xe9snet" }', "0xe9 at 23 is not UTF-8"),
        ("model_config { }".encode("utf-16"), "is not UTF-8|binary"),
        (b"#" * 300_000, "more than 64 KiB"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    spec = tmp_path / "spec.txt"
    spec.write_bytes(content)
    with pytest.raises(SpecError, match=message) as error:
        load(spec)
    [problem] = error.value.problems
    assert problem.where == str(spec)


def test_a_missing_file_is_refused_with_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "digits.txt").touch()
    with pytest.raises(SpecError, match=r'no such file.*did you mean "digits.txt"'):
        load(tmp_path / "digit.txt")


@pytest.mark.parametrize("name", ["", "nowhere/spec.txt", "a\0b", "x" * 5000])
def test_a_path_that_can_be_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError):
        load(os.path.join(tmp_path, name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    spec = tmp_path / "spec.txt"
    spec.touch(mode=0o000)
    with pytest.raises(SpecError, match="permission denied"):
        load(spec)


def test_a_spec_may_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(spec_text(),))
    writer.start()
    assert load(pipe) == loads(spec_text())
    writer.join()


@pytest.mark.parametrize(
    "encode", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")], ids=["bom", "crlf"]
)
def test_files_saved_on_windows_load(tmp_path: Path, encode: object) -> None:
    spec = tmp_path / "spec.txt"
    assert callable(encode)
    spec.write_bytes(encode(spec_text()).encode())
    assert load(spec) == loads(spec_text())
