"""`--set field=value`: values from the command line, written over those of the file.

The type of a value is judged by protobuf as in a file, but strings and enum names need no quotes; ranges come later,
for the file and the flags alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trt_cls.spec import judge
from trt_cls.spec.reference import is_map
from trt_cls.spec.report import Report, join, quoted


def apply_overrides(message: Message, overrides: Sequence[str], report: Report) -> None:
    """Writes each `field=value` into `message`; what is wrong goes to the report, at the flag."""
    for override in overrides:
        _apply(message, override, report)


def _apply(message: Message, override: str, report: Report) -> None:
    flag = f"--set {quoted(override)}"
    path, equals, value = override.partition("=")
    path, value = path.strip(), value.strip()
    if not equals or not path:
        report.add("", "no field=value found, expected one as in train_config.n_epochs=3", where=flag)
        return
    block, at = message, ""
    names = path.split(".")
    for position, name in enumerate(names):
        at = join(at, name)
        field = judge.field_named(block, name)
        if field is None:
            report.add(at, judge.unknown_field(block, at), where=flag)
            return
        rest = names[position + 1 :]
        if field.message_type is None or is_map(field):
            _write(block, field, rest, value, (at, flag), report)
            return
        if not rest:
            inner = ", ".join(field.message_type.fields_by_name)
            report.add(at, f"a block found, expected one of its fields: {inner}", where=flag)
            return
        block = _enter(block, field, at, flag, report)


def _enter(message: Message, field: FieldDescriptor, path: str, flag: str, report: Report) -> Message:
    """The block `field`, made if it is not there; another branch of its oneof goes away."""
    if not message.HasField(field.name):
        report.flags[path] = flag
    block: Message = getattr(message, field.name)
    block.SetInParent()
    return block


def _write(
    message: Message, field: FieldDescriptor, rest: list[str], value: str, place: tuple[str, str], report: Report
) -> None:
    path, flag = place
    before = len(report.problems)
    if is_map(field):
        if len(rest) != 1 or not rest[0]:
            report.add(path, f"a map found, expected one of its keys: {path}.KEY=VALUE", where=flag)
        else:
            path = join(path, rest[0])
            _write_entry(message, field, rest[0], value, (path, flag), report)
    elif rest:
        report.add(join(path, ".".join(rest)), f"unknown field: {field.name} is no block", where=flag)
    else:
        fresh = type(message)()
        for item in _items(value) if field.is_repeated else [value]:
            if not _merge(fresh, field, item):
                report.add(path, judge.refusal(field, path, item), where=flag)
        if len(report.problems) == before:
            message.ClearField(field.name)
            message.MergeFrom(fresh)
    report.flags[path] = flag


def _write_entry(
    message: Message, field: FieldDescriptor, key: str, value: str, place: tuple[str, str], report: Report
) -> None:
    entry = judge.empty_entry(field)
    value_field: Any = judge.field_named(entry, "value")
    if judge.merge(entry, value_field, value):
        getattr(message, field.name)[key] = entry.value
    else:
        report.add(place[0], judge.refusal(value_field, place[0], value), where=place[1])


def _merge(message: Message, field: FieldDescriptor, value: str) -> bool:
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING or value.startswith(judge.QUOTES):
        return judge.merge(message, field, value)
    try:
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    except ValueError:  # bytes of the command line that are not UTF-8
        return False
    return True


def _items(value: str) -> list[str]:
    """The elements of `0,1` or `[0, 1]`."""
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return [item.strip() for item in inner.split(",")] if inner.strip() else []
