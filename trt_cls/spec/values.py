"""One name or value of a spec: parsed by protobuf, with the message for one that protobuf refuses.

Used for files (`reading.py`) and the command line (`loader.apply_overrides`).
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trt_cls.errors import did_you_mean
from trt_cls.spec.problems import quoted
from trt_cls.spec.reference import reference

QUOTES = ('"', "'")
MOST_CHARACTERS = 4096
"""The longest path on Linux; protobuf's time for a string of backslashes grows with the square of its length."""


def parse_into(message: Message, field: FieldDescriptor, source: str) -> bool:
    """Parses `source` and writes the value into `message`; returns False if protobuf refuses it."""
    if len(source) > MOST_CHARACTERS:
        return False
    fresh = type(message)()
    try:
        with warnings.catch_warnings():
            # An unknown escape such as "\d" is only a warning in Python; protobuf's other parsers refuse it.
            warnings.simplefilter("error")
            text_format.Parse(f"{field.name}: {source}", fresh)
    except (text_format.ParseError, ValueError, SystemError, Warning):  # SystemError: a name that is not Unicode
        return False
    if any(other.name != field.name for other, _ in fresh.ListFields()):
        return False  # a flag's value with another field in it
    if field.enum_type is not None and getattr(fresh, field.name) not in field.enum_type.values_by_number:
        return False
    message.MergeFrom(fresh)
    return True


def field_named(message: Message, name: str) -> FieldDescriptor | None:
    """The field of that name, or None."""
    fields: Any = message.DESCRIPTOR.fields  # the map by name raises SystemError for names that are not Unicode
    return next((field for field in fields if field.name == name), None)


def empty_entry(field: FieldDescriptor) -> Any:
    """An entry of a map, without key and value."""
    descriptor: Any = field.message_type
    return message_factory.GetMessageClass(descriptor)()


def refusal(field: FieldDescriptor, path: str, source: str) -> str:
    """What was found and expected, for a text that `parse_into` refused."""
    if len(source) > MOST_CHARACTERS:
        return f"{len(source)} characters found, expected a value of at most {MOST_CHARACTERS}"
    return f"{found(path, source)} found, expected {_expected(field, path, source)}"


def is_secret(path: str) -> bool:
    """Whether the value of the field must not be shown."""
    row = reference().get(path)
    return row is not None and row.secret


def found(path: str, source: str) -> str:
    """What was found in the field, for a message."""
    return "a value" if is_secret(path) else quoted(source.replace("\n", " "))


def unknown_field(message: Message, path: str) -> str:
    """The message for an unknown field: a similar name, the block it belongs in, or the fields of the block."""
    name = path.rpartition(".")[2]
    known = list(message.DESCRIPTOR.fields_by_name)
    hint = did_you_mean(name, known)
    homes = [row.rpartition(".")[0] for row in reference() if row.rpartition(".")[2] == name and "." in row]
    if not hint and homes:
        hint = f"; it belongs in {' or '.join(homes)}"
    return "unknown field" + (hint or f", expected one of {', '.join(known)}")


def other_branch(message: Message, field: FieldDescriptor) -> str | None:
    """The field of the same oneof that is already set, or None."""
    oneof = field.containing_oneof
    if oneof is None or len(oneof.fields) == 1:
        return None
    held: str | None = message.WhichOneof(oneof.name)
    return held if held != field.name else None


def _expected(field: FieldDescriptor, path: str, source: str) -> str:
    row = reference().get(path)
    allowed = row.allowed if row else ""
    if field.enum_type is not None:
        names = list(field.enum_type.values_by_name)
        return f"one of {', '.join(names)}, without quotes{did_you_mean(source.strip(''.join(QUOTES)).upper(), names)}"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true or false"
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if source.startswith(QUOTES):
            return "a string in quotes on one line, a backslash in it doubled"
        return f'a string in quotes: {field.name}: "{"…" if is_secret(path) else quoted(source)}"'
    if field.cpp_type == FieldDescriptor.CPPTYPE_INT32:
        if re.fullmatch(r"-?\d+", source):
            return "an integer from -2147483648 to 2147483647, without a leading 0"
        return allowed if allowed.startswith("an integer") else "an integer"
    return allowed if allowed.startswith("a number") else "a number"
