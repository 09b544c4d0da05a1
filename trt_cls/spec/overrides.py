"""`--set field=value`: values from the command line replace those of the file.

Protobuf checks the type of a value as in a file, but strings need no quotes. Ranges are checked later, for file and
flags alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trt_cls.spec import values
from trt_cls.spec.descriptors import is_map, is_repeated, new_message
from trt_cls.spec.problems import Report, join, quoted
from trt_cls.text import printable


class _Refused(Exception):
    """The value was not written; the arguments are the field's path and the problem."""


def apply_overrides(message: Message, overrides: Sequence[str], report: Report) -> None:
    """Writes each `field=value` into `message`; adds problems to the report, with the flag as their place."""
    for override in overrides:
        name = override.partition("=")[0]
        flag = f"--set {printable(f'{name}=…' if values.is_secret(name.strip()) else override)}"
        changed = new_message()
        changed.CopyFrom(message)
        try:
            paths = _apply(changed, override)
        except _Refused as refused:
            path, problem = refused.args
            report.add(path, problem, where=flag)
        else:
            message.CopyFrom(changed)
            report.flags.update(dict.fromkeys(paths, flag))


def _apply(message: Message, override: str) -> list[str]:
    """Writes one value; returns the paths of its field and of the blocks that were created for it."""
    path, equals, value = (part.strip() for part in override.partition("="))
    if not equals or not path:
        raise _Refused("", "no field=value found, expected one as in train_config.n_epochs=3")
    block, at, names = message, "", path.split(".")
    made: list[str] = []
    while True:
        name = names.pop(0)
        at = join(at, name)
        field = values.field_named(block, name)
        if field is None:
            raise _Refused(at, values.unknown_field(block, at))
        if field.message_type is None or is_map(field):
            _write(block, field, at, names, value)
            return [*made, at, path]
        if not names:
            fields = ", ".join(field.message_type.fields_by_name)
            raise _Refused(at, f"a block found, expected one of its fields: {fields}")
        if not block.HasField(name):
            made.append(at)
        # In a oneof, this replaces the branch that was set.
        getattr(block, name).SetInParent()
        block = getattr(block, name)


def _write(block: Message, field: FieldDescriptor, path: str, key: list[str], value: str) -> None:
    if is_map(field):
        if len(key) != 1 or not key[0].isprintable():
            raise _Refused(path, f"a map found, expected a value of one of its keys: {path}.KEY=VALUE")
        entry = values.empty_entry(field)
        value_field: Any = values.field_named(entry, "value")
        _merge(entry, value_field, join(path, key[0]), value)
        getattr(block, field.name)[key[0]] = entry.value
    elif key:
        raise _Refused(path, f"a single value found, expected no field below it: {quoted('.'.join(key))}")
    else:
        block.ClearField(field.name)
        for item in _items(value) if is_repeated(field) else [value]:
            _merge(block, field, path, item)


def _merge(message: Message, field: FieldDescriptor, path: str, value: str) -> None:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not value.startswith(values.QUOTES):
        if not value.isprintable():
            raise _Refused(path, f"{values.found(path, value)} found, expected text without control characters")
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if not values.merge(message, field, value):
        raise _Refused(path, values.refusal(field, path, value))


def _items(value: str) -> list[str]:
    """The elements of `0,1` or `[0, 1]`."""
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return [item.strip() for item in inner.split(",")] if inner.strip() else []
