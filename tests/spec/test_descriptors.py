from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor

from trt_cls.spec.descriptors import is_repeated, message_class, new_message

LISTS = {"freeze_blocks", "annealing_points", "tags", "model_parallelism", "keep"}
MAPS = {"activation_parameters", "image_mean"}


def blocks(descriptor: Any) -> list[Any]:
    """The descriptor and those of all blocks in it."""
    inner = [field.message_type for field in descriptor.fields if field.message_type and field.name not in MAPS]
    return [descriptor, *(block for each in inner for block in blocks(each))]


BLOCKS = blocks(new_message().DESCRIPTOR)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_single_field_knows_whether_it_was_given(block: Any) -> None:
    for field in block.fields:
        assert is_repeated(field) == (field.name in LISTS | MAPS), field.full_name
        assert field.has_presence != is_repeated(field), field.full_name


@pytest.mark.parametrize(
    ("block", "branches"),
    [("Optimizer", ["sgd", "adam", "rmsprop"]), ("LrConfig", ["step", "soft_anneal", "cosine"])],
)
def test_of_a_choice_only_one_branch_can_be_set(block: str, branches: list[str]) -> None:
    [oneof] = message_class(block).DESCRIPTOR.oneofs
    assert [field.name for field in oneof.fields] == branches
    message = message_class(block)()
    for branch in branches:
        getattr(message, branch).SetInParent()
    assert [field.name for field, _ in message.ListFields()] == branches[-1:]


@pytest.mark.parametrize(
    "text",
    [
        "model_config { resize_interpolation_method: BICUBIC freeze_blocks: [0, 1.0] n_layers: -1 }",
        'train_config { image_mean { key: "b" value: 103.9 } label_smoothing: 0.1 random_seed: 0 }',
        'train_config { visualizer { wandb_config { mode: OFFLINE tags: "a" tags: "b" } } }',
        "extensions { }",
    ],
)
def test_protobuf_parses_and_prints_without_loss(text: str) -> None:
    message = text_format.Parse(text, new_message())
    assert text_format.Parse(text_format.MessageToString(message), new_message()) == message
    assert message.ListFields()


@pytest.mark.parametrize(
    "text", ['model_config { resize_interpolation_method: "BICUBIC" }', "train_config { n_epochs: 1.5 }"]
)
def test_protobuf_refuses_values_of_another_type(text: str) -> None:
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, new_message())


@pytest.mark.parametrize(("label", "expected"), [(FieldDescriptor.LABEL_REPEATED, True), (1, False)])
def test_a_list_is_known_where_protobuf_has_only_labels(label: int, expected: bool) -> None:
    assert is_repeated(SimpleNamespace(label=label)) is expected


def test_the_spec_package_is_light_until_a_spec_is_read() -> None:
    code = "import sys, trt_cls.contract, trt_cls.spec; print(list(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "trt_cls.spec.architectures" in result.stdout
    assert "trt_cls.spec.experiment" not in result.stdout
    assert "google.protobuf" not in result.stdout
    assert "'torch'" not in result.stdout
