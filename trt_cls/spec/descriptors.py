"""The messages that a spec file is parsed into, made from the dataclasses of `experiment.py`.

The type of a dataclass field decides that of the message's field, with the presence of each single field tracked, so
that a field that is left out differs from one that is zero. Numbers are double and int32, so that 0.1 stays 0.1 and a
negative count reaches the check that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trt_cls.spec.experiment import Experiment
from trt_cls.spec.fields import ExactlyOne

_PACKAGE = "trt_cls.spec"
_Proto = descriptor_pb2.FieldDescriptorProto
_SCALARS = {float: _Proto.TYPE_DOUBLE, int: _Proto.TYPE_INT32, bool: _Proto.TYPE_BOOL, str: _Proto.TYPE_STRING}


def new_message() -> Message:
    """A message of an experiment in which no field is given."""
    message: Message = message_class("Experiment")()
    return message


@cache
def message_class(name: str) -> Any:
    """The message class of the dataclass with that name."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def block_class(hint: Any) -> Any:
    """The dataclass in a type like `Sgd | None`, or None."""
    return next((candidate for candidate in (hint, *get_args(hint)) if is_dataclass(candidate)), None)


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def is_repeated(field: Any) -> bool:
    """Whether the field is a list or a map; old versions of protobuf have only `label`, new ones warn of it."""
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if repeated is None else repeated)


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="trt_cls/spec.proto", package=_PACKAGE, syntax="proto3")
    _add_message(file, Experiment)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_message(file: descriptor_pb2.FileDescriptorProto, cls: Any) -> None:
    """Adds the message of a dataclass and those of the blocks in it; fields are numbered in their order."""
    hints, message = get_type_hints(cls), file.message_type.add(name=cls.__name__)
    if issubclass(cls, ExactlyOne):
        message.oneof_decl.add(name="choice")
    optional = []
    for number, option in enumerate(fields(cls), 1):
        field = message.field.add(name=option.name, number=number, label=_Proto.LABEL_OPTIONAL)
        _set_type(field, message, hints[option.name], option.metadata["allowed"])
        if field.label == _Proto.LABEL_REPEATED:
            continue
        if issubclass(cls, ExactlyOne):
            field.oneof_index = 0
        else:
            optional.append(field)
        if block := block_class(hints[option.name]):
            _add_message(file, block)
    for field in optional:  # proto3 tracks presence by a oneof for each field, after the real ones
        field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{field.name}")


def _set_type(field: Any, message: Any, hint: Any, allowed: Any) -> None:
    """Sets type and label; adds the nested types of maps and enums to `message`."""
    scope = f".{_PACKAGE}.{message.name}"
    type_name = "".join(part.title() for part in field.name.split("_"))
    if block := block_class(hint):
        field.type, field.type_name = _Proto.TYPE_MESSAGE, f".{_PACKAGE}.{block.__name__}"
    elif get_origin(hint) is Mapping:
        key, value = get_args(hint)
        entry = message.nested_type.add(name=f"{type_name}Entry", options=descriptor_pb2.MessageOptions(map_entry=True))
        entry.field.add(name="key", number=1, label=_Proto.LABEL_OPTIONAL, type=_SCALARS[key])
        entry.field.add(name="value", number=2, label=_Proto.LABEL_OPTIONAL, type=_SCALARS[value])
        field.label, field.type, field.type_name = _Proto.LABEL_REPEATED, _Proto.TYPE_MESSAGE, f"{scope}.{entry.name}"
    elif get_origin(hint) is tuple:
        item = get_args(hint)[0]
        # Integers in a list are written "1" and "1.0".
        field.label, field.type = _Proto.LABEL_REPEATED, _SCALARS[float if item is int else item]
    elif allowed.is_enum:
        enum = message.enum_type.add(name=type_name)
        for index, word in enumerate(allowed.words):
            enum.value.add(name=word, number=index)
        field.type, field.type_name = _Proto.TYPE_ENUM, f"{scope}.{enum.name}"
    else:
        field.type = _SCALARS[hint]
