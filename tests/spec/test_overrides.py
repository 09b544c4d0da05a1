from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.spec_texts import problems, spec_text
from trt_cls.spec import loads


def loaded(override: str, text: str = "") -> object:
    """What the field that `override` sets holds after it."""
    value: object = loads(text or spec_text(evaluation=""), overrides=[override])
    for name in override.partition("=")[0].strip().split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train_config.n_epochs=3", 3),
        ("train_config.label_smoothing=0", 0.0),
        ("model_config.use_bias=True", True),
        ("model_config.resize_interpolation_method=BICUBIC", "BICUBIC"),
        ("model_config.arch=googlenet", "googlenet"),
        ('model_config.arch="googlenet"', "googlenet"),
        ("model_config.input_image_size = 1,32,32", "1,32,32"),
        ("train_config.train_dataset_path=/data/a=b/c #1\\é", "/data/a=b/c #1\\é"),
        ("train_config.pretrained_model_path=", ""),
        ("model_config.freeze_blocks=0,1", (0, 1)),
        ("model_config.freeze_blocks=[0, 1.0]", (0, 1)),
        ("model_config.freeze_blocks=2", (2,)),
        ("model_config.freeze_blocks=", ()),
        ("train_config.visualizer.wandb_config.tags=a,b c", ("a", "b c")),
        ("train_config.optimizer.adam.beta_1=0.5", 0.5),
        ("eval_config.top_k=1", 1),
    ],
)
def test_a_value_is_set(override: str, expected: object) -> None:
    assert loaded(override) == expected


@settings(deadline=None)
@given(st.text().map(str.strip).filter(lambda text: text.isprintable() and not text.startswith(("'", '"'))))
def test_any_printable_text_is_a_string(text: str) -> None:
    assert loaded(f"train_config.val_dataset_path={text}") == text


def test_the_file_is_overridden_and_the_last_flag_counts() -> None:
    text = spec_text("freeze_blocks: [0, 1]", "n_epochs: 7")
    assert loaded("train_config.n_epochs=8", text) == 8
    assert loaded("model_config.freeze_blocks=3", text) == (3,)
    train = loads(text, overrides=["train_config.n_epochs=8", "train_config.n_epochs=9"]).train_config
    assert train is not None
    assert train.n_epochs == 9


def test_entries_of_a_map_are_set_one_by_one() -> None:
    flags = [f"train_config.image_mean.{key}={number}" for key, number in (("b", 103.9), ("g", 1), ("r", 2))]
    train = loads(spec_text(), overrides=flags).train_config
    assert train is not None
    assert train.image_mean == {"b": 103.9, "g": 1, "r": 2}
    [problem] = problems(spec_text(), overrides=flags[:1])
    assert (problem.where, problem.path) == (f"--set {flags[0]}", "train_config.image_mean")


def test_a_field_of_another_branch_switches_the_branch() -> None:
    base = "train_config.lr_config.step."
    flags = [base + "learning_rate=0.1", base + "step_size=30", base + "gamma=0.5"]
    train = loads(spec_text(), overrides=flags).train_config
    assert train is not None
    assert train.lr_config.cosine is None
    assert train.lr_config.step is not None
    assert train.lr_config.step.gamma == 0.5
    found = problems(spec_text(), overrides=flags[2:])
    assert [(problem.where, problem.path) for problem in found] == [
        (f"--set {flags[2]}", base + "learning_rate"),
        (f"--set {flags[2]}", base + "step_size"),
    ]


def test_a_required_field_may_come_from_a_flag() -> None:
    text = spec_text().replace('val_dataset_path: "val"', "")
    assert problems(text)
    assert not problems(text, overrides=["train_config.val_dataset_path=val"])


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("train_config.n_epochs", "", "expected one as in train_config.n_epochs=3"),
        ("=3", "", "expected one as in"),
        ("train_config.n_epoch=3", "train_config.n_epoch", 'did you mean "n_epochs"'),
        ("n_epochs=3", "n_epochs", "it belongs in train_config"),
        ("eval_config.topk=3", "eval_config.topk", 'did you mean "top_k"'),
        ("train_config..n_epochs=3", "train_config.", "unknown field"),
        ("train_config=3", "train_config", "a block found, expected one of its fields: train_dataset_path"),
        ("train_config.n_epochs.x=3", "train_config.n_epochs", "expected no field below it"),
        ("train_config.image_mean=3", "train_config.image_mean", "a map found"),
        ("train_config.image_mean.b=x", "train_config.image_mean.b", "x found, expected a number"),
        ("train_config.n_epochs=x", "train_config.n_epochs", "x found, expected an integer ≥ 1"),
        ("train_config.n_epochs=", "train_config.n_epochs", "expected an integer"),
        ("train_config.n_epochs=0", "train_config.n_epochs", "0 found, expected an integer ≥ 1"),
        ("train_config.n_epochs=3 n_workers: 1", "train_config.n_epochs", "found, expected an integer"),
        ("model_config.freeze_blocks=0,9", "model_config.freeze_blocks", "9 found"),
        ("model_config.freeze_blocks=0,x", "model_config.freeze_blocks", "x found"),
        ("model_config.resize_interpolation_method=bicubic", "model_config.resize_interpolation_method", '"BICUBIC"'),
        ("train_config.val_dataset_path=a\tb", "train_config.val_dataset_path", "control characters"),
        ("train_config.val_dataset_path=\udcff", "train_config.val_dataset_path", "control characters"),
        ("model_config.arch=resnt", "model_config.arch", 'did you mean "resnet"'),
    ],
)
def test_a_wrong_flag_is_one_problem_that_names_it(override: str, path: str, message: str) -> None:
    [problem] = problems(spec_text(), overrides=[override])
    assert problem.where == "--set " + override.encode("unicode_escape").decode().replace("\\\\", "\\")
    assert problem.path == path
    assert message in problem.message
