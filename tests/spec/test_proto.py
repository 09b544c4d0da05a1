from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import pytest
from google.protobuf import descriptor_pb2

from trt_cls.spec import experiment, experiment_pb2
from trt_cls.spec.reference import message_class

ROOT = Path(__file__).parents[2]
MESSAGES = experiment_pb2.DESCRIPTOR.message_types_by_name

TYPES = {"TYPE_DOUBLE": float, "TYPE_INT32": int, "TYPE_BOOL": bool, "TYPE_STRING": str, "TYPE_ENUM": str}


def described() -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto.FromString(experiment_pb2.DESCRIPTOR.serialized_pb)


def test_the_generated_module_is_what_the_proto_file_says(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    made = tmp_path / "descriptors"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}", f"--descriptor_set_out={made}"]
    subprocess.run([*command, "trt_cls/spec/experiment.proto"], check=True, cwd=ROOT)
    [fresh] = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file
    for message in fresh.message_type:
        clear_json_names(message)
    assert fresh == described()


def clear_json_names(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        clear_json_names(nested)


@pytest.mark.parametrize("name", list(MESSAGES))
def test_a_message_and_its_dataclass_have_the_same_fields(name: str) -> None:
    cls = getattr(experiment, name)
    assert {field.name for field in fields(cls)} == set(MESSAGES[name].fields_by_name)


@pytest.mark.parametrize("message", described().message_type, ids=lambda message: message.name)
def test_a_field_has_the_type_of_the_dataclass(message: descriptor_pb2.DescriptorProto) -> None:
    hints = get_type_hints(getattr(experiment, message.name))
    maps = {nested.name for nested in message.nested_type if nested.options.map_entry}
    for field in message.field:
        hint, kind = hints[field.name], descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)
        if field.type_name.rpartition(".")[2] in maps:
            assert get_args(hint) == (str, float)
        elif kind == "TYPE_MESSAGE":
            assert message_class(hint).__name__ == field.type_name.rpartition(".")[2]
        elif field.label == field.LABEL_REPEATED:
            assert get_origin(hint) is tuple
            assert get_args(hint)[0] is (int if field.name == "freeze_blocks" else TYPES[kind])
        else:
            assert hint is TYPES[kind]


@pytest.mark.parametrize("message", described().message_type, ids=lambda message: message.name)
def test_every_single_field_knows_whether_it_was_given(message: descriptor_pb2.DescriptorProto) -> None:
    for field in MESSAGES[message.name].fields:
        assert field.has_presence or field.is_repeated, field.full_name


@pytest.mark.parametrize(("name", "branches"), [("Optimizer", 3), ("LrConfig", 3)])
def test_the_branches_of_a_choice_are_optional_in_the_dataclass(name: str, branches: int) -> None:
    [oneof] = MESSAGES[name].oneofs
    assert len(oneof.fields) == branches
    hints = get_type_hints(getattr(experiment, name))
    assert all(
        isinstance(hints[field.name], UnionType) and type(None) in get_args(hints[field.name]) for field in oneof.fields
    )


def test_the_spec_package_is_light_until_a_spec_is_read() -> None:
    code = "import sys, trt_cls.contract, trt_cls.spec; print(list(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "trt_cls.spec.experiment" in result.stdout
    assert "google.protobuf" not in result.stdout
    assert "'torch'" not in result.stdout
