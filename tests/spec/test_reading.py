from __future__ import annotations

import re

import pytest

from support.spec_texts import problems, spec_text
from trt_cls.spec import loads

FIVE_MISTAKES = """\
model_config {
  arch: "resnett"
  n_layer: 18
}
train_config {
  train_dataset_path: "train"
  val_dataset_path: "val"
  n_epochs: "many"
  optimizer { sgd { } }
  reg_config { type: "L2" scope: "Conv2D" weight_decay: 0.1 }
  lr_config {
    step {
      step_size: 30
      gamma: 1.5
    }
  }
}
"""


def test_every_mistake_is_reported_at_once_and_located() -> None:
    assert [(problem.where, problem.path) for problem in problems(FIVE_MISTAKES)] == [
        ("spec.txt:2", "model_config.arch"),
        ("spec.txt:3", "model_config.n_layer"),
        ("spec.txt:8", "train_config.n_epochs"),
        ("spec.txt:12", "train_config.lr_config.step.learning_rate"),
        ("spec.txt:14", "train_config.lr_config.step.gamma"),
    ]


def test_a_message_says_what_was_found_and_expected_and_a_near_name() -> None:
    messages = [problem.message for problem in problems(FIVE_MISTAKES)]
    assert messages[0].startswith('"resnett" found, expected one of resnet, vgg, ')
    assert messages[0].endswith('; did you mean "resnet"?')
    assert messages[1:] == [
        'unknown field; did you mean "n_layers"?',
        '"many" found, expected an integer ≥ 1',
        "missing, expected a number > 0",
        "1.5 found, expected a number in (0, 1)",
    ]


@pytest.mark.parametrize(
    ("model", "attribute", "expected"),
    [
        ("dropout: 0", "dropout", 0.0),
        ("batch_norm_config { momentum: 0.99 }", "batch_norm_config.momentum", 0.99),
        ("batch_norm_config < epsilon: 1e-3 >", "batch_norm_config.epsilon", 1e-3),
        ("batch_norm_config: { momentum: .5f; epsilon: 1e-3, }", "batch_norm_config.momentum", 0.5),
        ("use_bias: True", "use_bias", True),
        ("use_bias: true", "use_bias", True),
        ("use_bias: 1", "use_bias", True),
        ("use_bias: False", "use_bias", False),
        ("freeze_blocks: [0, 1]", "freeze_blocks", (0, 1)),
        ("freeze_blocks: 0\nfreeze_blocks: 1.0", "freeze_blocks", (0, 1)),
        ("freeze_blocks: []", "freeze_blocks", ()),
        ("resize_interpolation_method: BICUBIC", "resize_interpolation_method", "BICUBIC"),
        ("resize_interpolation_method: 1", "resize_interpolation_method", "BICUBIC"),
        ("arch: 'vgg' n_layers: 16 # why not", "arch", "vgg"),
        ('arch: "mobile" # both halves\n "net_v1"', "arch", "mobilenet_v1"),
        ('activation { activation_type: "relu" }', "activation.activation_type", "relu"),
    ],
)
def test_what_protobuf_accepts_is_accepted(model: str, attribute: str, expected: object) -> None:
    value: object = loads(spec_text(model)).model_config
    for name in attribute.split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "means",
    [
        "image_mean { key: 'b' value: 1 } image_mean { value: 2.5 key: 'g' } image_mean { key: 'r' value: 3 }",
        "image_mean: { key: 'b' value: 1 } image_mean { key: 'g' value: 2.5 } image_mean { key: 'r' value: 3.0 }",
        "image_mean: [{ key: 'b' value: 1 }, { key: 'g' value: 2.5 }, < key: 'r' value: 3 >]",
    ],
)
def test_a_map_is_written_entry_by_entry_or_as_a_list(means: str) -> None:
    train = loads(spec_text(train=means)).train_config
    assert train is not None
    assert train.image_mean == {"b": 1, "g": 2.5, "r": 3}


@pytest.mark.parametrize(
    ("line", "path", "message"),
    [
        ("n_layers: 18.0", "n_layers", "18.0 found, expected an integer"),
        ("n_layers: 99999999999", "n_layers", "2147483647"),
        ("use_bias: yes", "use_bias", "yes found, expected true or false"),
        ("use_bias: 2", "use_bias", "2 found"),
        ("dropout: half", "dropout", r"half found, expected a number in \[0, 1\)"),
        ("dropout: [0.1]", "dropout", "expected one value"),
        ("dropout { }", "dropout", "a block found, expected a value"),
        ("dropout 0.5", "dropout", '0.5 found, expected ":"'),
        ("arch: resnet", "arch", 'expected a string in quotes: arch: "resnet"'),
        ("arch: /a/b-c:d,e.f", "arch", "/a/b-c:d,e.f found, expected a string in quotes"),
        ('arch: "resnet', "arch", "in quotes on one line"),
        ('arch: "res\n"net"', "arch", "in quotes on one line"),
        (r'byom_model: "C:\dir"', "byom_model", "a backslash in it doubled"),
        (r'byom_model: "\377"', "byom_model", "in quotes"),
        ("resize_interpolation_method: LANCZOS", "resize_interpolation_method", "one of BILINEAR, BICUBIC"),
        ("resize_interpolation_method: BICUBI", "resize_interpolation_method", 'did you mean "BICUBIC"'),
        ('resize_interpolation_method: "BICUBIC"', "resize_interpolation_method", "without quotes"),
        ("resize_interpolation_method: 7", "resize_interpolation_method", "7 found"),
        ("freeze_blocks: [0, x, 1]", "freeze_blocks", "x found"),
        ("activation: relu", "activation", "expected a block: activation {"),
        ("n_layers: 18\nn_layers: 34", "n_layers", "given twice, first on line 2"),
        ("activation { activation_type: 'relu' } activation { }", "activation", "given twice"),
        ("n_epochs: 3", "n_epochs", "it belongs in train_config"),
        ("n_workers: 3", "n_workers", "it belongs in train_config or eval_config"),
        ("quux { a: [{ b: 1 }] }", "quux", "unknown field, expected one of arch, "),
        ("quux: 'a' 'b'", "quux", "unknown field"),
    ],
)
def test_a_wrong_field_is_one_problem_and_reading_goes_on(line: str, path: str, message: str) -> None:
    found = problems(spec_text(line, "n_epochs: 0"))
    assert [problem.path for problem in found] == [f"model_config.{path}", "train_config.n_epochs"]
    assert found[0].where in ("spec.txt:2", "spec.txt:3")
    assert re.search(message, found[0].message), found[0].message


@pytest.mark.parametrize(
    ("means", "message"),
    [
        ("image_mean { value: 3 }", 'keys "" found'),
        ("image_mean: 3", "expected { key: … value: … }"),
        ("image_mean { key: 'b' value: 1 } image_mean { key: 'b' value: 2 }", "found twice"),
        ("image_mean { key: b value: 1 }", "string in quotes"),
        ("image_mean { key: 'b' value: x }", "x found, expected a number"),
    ],
)
def test_a_wrong_map_entry_is_one_problem(means: str, message: str) -> None:
    [problem] = problems(spec_text(train=means))
    assert problem.path.startswith("train_config.image_mean")
    assert message in problem.message


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("model_config {\n arch: 'resnet'\n", "spec.txt:1", '"{" is never closed'),
        ("model_config {\n arch: }", "spec.txt:2", "} found, expected a value"),
        ("model_config {\n arch:\n", "spec.txt:2", "the end of the text found, expected a value"),
        ("}\n", "spec.txt:1", "} found, expected a field name"),
        ("model_config {\n ; }", "spec.txt:2", '; found, expected a field name or "}"'),
        ("\nsome words\n", "spec.txt:2", "some found, expected a field name and its value"),
        ("model_config { freeze_blocks: [0 1] }", "spec.txt:1", '1 found, expected "," or "]"'),
        ("quux { [ }", "spec.txt:1", '"[" is never closed'),
        ("\x07", "spec.txt:1", "\\x07 found"),
    ],
)
def test_a_mistake_of_syntax_ends_the_reading(text: str, where: str, message: str) -> None:
    problem = problems(text)[-1]
    assert (problem.where, message in problem.message) == (where, True), problem


def test_problems_before_a_mistake_of_syntax_are_reported_too() -> None:
    found = problems("model_config {\n n_layer: 3\n dropout: 2\n ]\n}")
    assert [(problem.where, problem.path) for problem in found] == [
        ("spec.txt:2", "model_config.n_layer"),
        ("spec.txt:3", "model_config.dropout"),
        ("spec.txt:4", ""),
    ]


def test_messages_are_one_printable_line_each() -> None:
    for problem in problems('model_config { arch: "a\x1b[31m\u202e" n_layers: \u200b }\nquux\x85: "\ud800"'):
        assert str(problem).isprintable()


def test_a_text_of_nothing_but_mistakes_is_given_up() -> None:
    found = problems("a: 1\n" * 10_000)
    assert len(found) == 101
    assert "the rest was not read" in "".join(problem.message for problem in found)


def test_depth_is_no_matter() -> None:
    for opening in ("{", "[", "quux {", "quux: ["):
        assert problems(f"model_config {{ quux: {opening * 40_000}")
