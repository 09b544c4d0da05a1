from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.shared_data import TAO_SPEC
from support.spec_texts import spec_text
from trt_cls.cli import main
from trt_cls.errors import SpecError
from trt_cls.spec import load, loads, show
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import (
    Activation,
    Adam,
    BatchNormConfig,
    ClearmlConfig,
    CosineLr,
    EvalConfig,
    Experiment,
    LrConfig,
    ModelConfig,
    Optimizer,
    RegConfig,
    Rmsprop,
    Sgd,
    SoftAnnealLr,
    StepLr,
    TrainConfig,
    Visualizer,
    WandbConfig,
)
from trt_cls.spec.reference import markdown, reference

TEXT = st.text(max_size=12)
COUNT = st.integers(1, 2**31 - 1)
OPEN = st.floats(0, 1, exclude_min=True, exclude_max=True)
RATE = st.floats(0, 1, exclude_max=True)
RATIO = st.floats(0, 1)
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def block(cls: type, **given_fields: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Blocks of `cls` with some of the fields given."""
    return st.fixed_dictionaries({}, optional=given_fields).map(lambda values: cls(**values))


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    family = ARCHITECTURES[draw(st.sampled_from(list(ARCHITECTURES)))]
    channels, height, width = draw(st.tuples(st.sampled_from([1, 3]), st.integers(16, 999), st.integers(16, 999)))
    return ModelConfig(
        arch=family.name,
        n_layers=draw(st.sampled_from(family.depths or (18,))),
        input_image_size=f"{channels},{height},{width}",
        resize_interpolation_method=draw(st.sampled_from(["BILINEAR", "BICUBIC"])),
        use_bias=draw(st.booleans()),
        all_projections=family.has_shortcuts and draw(st.booleans()),
        freeze_blocks=tuple(draw(st.lists(st.sampled_from(family.freeze_blocks), max_size=3))),
        dropout=draw(RATE) if family.has_dropout else 0.0,
        batch_norm_config=draw(st.builds(BatchNormConfig, momentum=OPEN, epsilon=st.just(1e-3))),
        activation=draw(
            st.none()
            | st.builds(
                Activation,
                activation_type=st.sampled_from(family.activations),
                activation_parameters=st.dictionaries(TEXT, FINITE, max_size=2),
            )
        ),
    )


SCHEDULES = st.one_of(
    st.builds(StepLr, learning_rate=POSITIVE, step_size=st.just(12.5), gamma=OPEN).map(
        lambda block: LrConfig(step=block)
    ),
    st.builds(SoftAnnealLr, learning_rate=POSITIVE, annealing_points=st.lists(OPEN).map(sorted).map(tuple)).map(
        lambda block: LrConfig(soft_anneal=block)
    ),
    st.builds(CosineLr, learning_rate=POSITIVE, min_lr_ratio=RATE, soft_start=RATE).map(
        lambda block: LrConfig(cosine=block)
    ),
)
OPTIMIZERS = st.one_of(
    block(Sgd, lr=POSITIVE, momentum=RATE, nesterov=st.booleans()).map(lambda block: Optimizer(sgd=block)),
    block(Adam, beta_1=RATE, epsilon=POSITIVE).map(lambda block: Optimizer(adam=block)),
    block(Rmsprop, rho=RATE, decay=RATIO).map(lambda block: Optimizer(rmsprop=block)),
)
TAGS = st.lists(TEXT, max_size=3).map(tuple)
VISUALIZERS = block(
    Visualizer,
    enabled=st.booleans(),
    num_images=COUNT,
    wandb_config=st.none() | block(WandbConfig, notes=TEXT, tags=TAGS, mode=st.sampled_from(["ONLINE", "DISABLED"])),
    clearml_config=st.none() | block(ClearmlConfig, task=TEXT, tags=TAGS),
)


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    model = draw(models())
    train = st.builds(
        TrainConfig,
        train_dataset_path=TEXT,
        val_dataset_path=TEXT,
        n_epochs=COUNT,
        random_seed=COUNT,
        label_smoothing=RATE,
        mixup_alpha=RATIO,
        preprocess_mode=st.just("caffe"),
        image_mean=st.fixed_dictionaries(dict.fromkeys("bgr" if model.input_shape[0] == 3 else "l", FINITE)),
        model_parallelism=st.lists(POSITIVE, max_size=2).map(tuple),
        visualizer=VISUALIZERS,
        optimizer=OPTIMIZERS,
        reg_config=st.builds(RegConfig, type=st.sampled_from(["L1", "L2", "None"]), weight_decay=OPEN),
        lr_config=SCHEDULES,
    )
    evaluation = st.builds(EvalConfig, eval_dataset_path=TEXT, model_path=TEXT, top_k=COUNT)
    return Experiment(
        model_config=model, train_config=draw(st.none() | train), eval_config=draw(st.none() | evaluation)
    )


@settings(deadline=None)
@given(experiments())
def test_what_is_shown_loads_back_as_the_same_experiment(experiment: Experiment) -> None:
    assert loads(show(experiment, secrets=True)) == experiment


def test_a_tao_spec_shown_loads_back_as_the_same_experiment() -> None:
    experiment = load(TAO_SPEC, paths=False)
    assert loads(show(experiment)) == experiment


def test_every_field_is_shown_with_its_value() -> None:
    text = show(loads(spec_text('input_image_size: "1,32,32"')))
    for line in (
        "n_layers: 18",
        "momentum: 0.9",
        "epsilon: 1e-05",
        "value: 117.3786",
        "nesterov: false",
        "soft_start: 0.0",
    ):
        assert f" {line}\n" in text


def test_the_means_of_other_modes_are_not_shown() -> None:
    assert "image_mean" not in show(loads(spec_text(train='preprocess_mode: "torch"')))


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("model_config.arch", "string", '"resnet"'),
        ("model_config.resize_interpolation_method", "enum", "BILINEAR"),
        ("model_config.freeze_blocks", "list of int", ""),
        ("train_config.optimizer", "block", "required"),
        ("train_config.optimizer.adam.epsilon", "float", "1e-07"),
        ("train_config.image_mean", "map of string to float", ""),
        ("train_config.enable_random_crop", "bool", "true"),
        ("train_config.train_dataset_path", "string", "required"),
        ("train_config.lr_config.soft_anneal.annealing_points", "list of float", ""),
        ("eval_config.top_k", "int", "5"),
    ],
)
def test_the_reference_knows_type_and_default(path: str, kind: str, default: str) -> None:
    row = reference()[path]
    assert (row.type, row.default) == (kind, default)
    assert row.help


def test_defaults_of_the_reference_are_what_a_spec_gets() -> None:
    experiment = loads(spec_text(evaluation=""))
    assert experiment.train_config is not None
    experiment = replace(experiment, train_config=replace(experiment.train_config, image_mean={}))
    absent = ("", "required", '""')
    rows = [row for row in reference().values() if row.path.count(".") == 1 and row.default not in absent]
    assert len(rows) > 20  # a path that is empty has been given
    text = show(experiment)
    for row in rows:
        assert f"  {row.path.partition('.')[2]}: {row.default}\n" in text


def test_the_markdown_reference_has_every_field_once_in_tables_of_five_columns() -> None:
    table = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in table] == [path.partition(".")[2] for path in reference() if "." in path]
    assert all(line.replace("\\|", "").count("|") == 6 for line in table)


SECRET = "0123456789abcdef"
KEY = "train_config.visualizer.wandb_config.key"


def test_a_secret_is_shown_only_where_it_is_asked_for() -> None:
    given = loads(spec_text(train=f'visualizer {{ wandb_config {{ enabled: true key: "{SECRET}" }} }}'))
    text = show(given)
    assert SECRET not in text
    assert f"# {KEY}: a secret" in text
    assert SECRET not in repr(given)
    assert loads(show(given, secrets=True)) == given


URL = f"https://u:{SECRET}@host/best.onnx?X-Amz-Signature={SECRET}"


def test_no_field_shows_the_secrets_of_urls() -> None:
    tracker = f'visualizer {{ wandb_config {{ notes: "see {URL}, please" tags: "{URL}" }} }}'
    given = loads(spec_text(train=tracker, evaluation=f'model_path: "{URL}"'))
    text = show(given)
    assert SECRET not in text
    assert 'model_path: "https://host/best.onnx"' in text
    assert 'notes: "see https://host/best.onnx, please"' in text
    assert "# eval_config.model_path: a secret" in text
    assert show(loads(text)).splitlines() == [line for line in text.splitlines() if not line.startswith("#")]
    assert loads(show(given, secrets=True)) == given


@pytest.mark.parametrize("field", ["eval_config.top_k", "eval_config.absent", "train_config.pretrained_model_path"])
@pytest.mark.parametrize("value", [URL, URL.replace("@", "x" * 60 + "@")], ids=["short", "cut"])
def test_no_problem_of_a_field_shows_the_secrets_of_urls(
    field: str, value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "spec.txt").write_text(spec_text(evaluation=""))
    assert main(["spec", "check", str(tmp_path / "spec.txt"), "--set", f'{field}="{value}"', "-v"]) == 2
    err = capsys.readouterr().err
    assert "https://host/best.onnx" in err
    assert SECRET not in err


@pytest.mark.parametrize("wrong", [f"key: {SECRET}", f'key "{SECRET}"', f"key: '{SECRET}", f"key: [{SECRET}]"])
def test_no_message_shows_a_secret(wrong: str) -> None:
    with pytest.raises(SpecError, match="wandb_config") as caught:
        loads(spec_text(train=f"visualizer {{ wandb_config {{ {wrong} }} }}"))
    assert SECRET not in str(caught.value)
    with pytest.raises(SpecError, match="wandb_config") as caught:
        loads(spec_text(), overrides=[f"{KEY}=\x00{SECRET}"])
    assert SECRET not in str(caught.value)
