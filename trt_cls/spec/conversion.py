"""Message → frozen dataclasses: what was given, defaults for the rest, and each value's own range.

A field was given where protobuf says that it is present; protobuf's zeros for absent fields never get through. A
required field that is missing is None in the result: the report says so, and no such experiment leaves the loader.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trt_cls.spec.experiment import Experiment
from trt_cls.spec.ranges import Allowed
from trt_cls.spec.reference import is_map, is_required, message_class
from trt_cls.spec.report import Report, join


def experiment_from_message(message: Message, report: Report, *, complete: bool) -> Experiment:
    """The experiment; `complete` says whether fields that are missing were left out by the author of the spec."""
    experiment: Experiment = _block(Experiment, message, "", report, complete)
    return experiment


def _block(cls: Any, message: Message, path: str, report: Report, complete: bool) -> Any:
    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    for option in fields(cls):
        name, where = option.name, join(path, option.name)
        field: Any = message.DESCRIPTOR.fields_by_name[name]
        if not _is_present(message, field):
            if is_required(option):
                given[name] = None
                if complete and report.sound(where):
                    report.add(where, _missing(option.metadata["allowed"], field))
            continue
        value = getattr(message, name)
        nested = message_class(hints[name])
        if nested:
            given[name] = _block(nested, value, where, report, complete)
        else:
            given[name] = _value(field, value, hints[name])
            report.judge(given[name], option.metadata["allowed"], where)
    return cls(**given)


def _is_present(message: Message, field: FieldDescriptor) -> bool:
    return message.HasField(field.name) if field.has_presence else len(getattr(message, field.name)) > 0


def _value(field: FieldDescriptor, value: Any, hint: Any) -> Any:
    if is_map(field):
        return dict(sorted(value.items()))
    if field.is_repeated:
        whole_numbers = int in get_args(hint)
        return tuple(int(item) if whole_numbers and float(item).is_integer() else item for item in value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value


def _missing(allowed: Allowed, field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return f"missing, expected {field.name} {{ … }}"
    return f"missing, expected {allowed.describe or 'a value'}"
