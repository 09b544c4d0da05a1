"""Every field of a spec as a table, for messages, `spec fields` and the documentation; an experiment as spec text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trt_cls.spec.descriptors import block_class, is_map, is_repeated, message_class, new_message
from trt_cls.spec.experiment import Experiment
from trt_cls.spec.problems import join
from trt_cls.urls import without_secrets

_TYPES = {
    FieldDescriptor.CPPTYPE_BOOL: "bool",
    FieldDescriptor.CPPTYPE_DOUBLE: "float",
    FieldDescriptor.CPPTYPE_ENUM: "enum",
    FieldDescriptor.CPPTYPE_INT32: "int",
    FieldDescriptor.CPPTYPE_MESSAGE: "block",
    FieldDescriptor.CPPTYPE_STRING: "string",
}


@dataclass(frozen=True)
class FieldRow:
    """One field."""

    path: str
    type: str
    """bool, int, float, string, enum, block, "list of …" or "map of string to float"."""
    default: str
    """As a spec writes it; "required", or empty for a list, map or block that is left out."""
    allowed: str
    """Completes "expected …"; empty where every value of the type will do."""
    help: str
    words: tuple[str, ...]
    """The allowed values, where they are words."""
    secret: bool
    """Whether a message must not show the value."""


@cache
def reference() -> dict[str, FieldRow]:
    """All fields by path, in the order of the dataclasses, each block before its fields."""
    return {row.path: row for row in _rows(Experiment, message_class("Experiment").DESCRIPTOR, "")}


def is_required(option: Field[Any]) -> bool:
    """Whether the spec must give the field of a dataclass."""
    return option.default is MISSING and option.default_factory is MISSING


def markdown() -> str:
    """The reference as a Markdown page: one table for each section."""
    lines = ["# Fields of a spec"]
    for row in reference().values():
        section, _, name = row.path.partition(".")
        if not name:
            lines += [
                "",
                f"## {section}",
                "",
                "| field | type | default | allowed | meaning |",
                "|---|---|---|---|---|",
            ]
        else:
            default = row.default if row.default in ("", "required") else f"`{row.default}`"
            cells = (f"`{name}`", row.type, default, row.allowed, row.help)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _rows(cls: Any, descriptor: Any, path: str) -> list[FieldRow]:
    hints = get_type_hints(cls)
    rows = []
    for option in fields(cls):
        field = descriptor.fields_by_name[option.name]
        allowed = option.metadata["allowed"]
        rows.append(
            FieldRow(
                path=join(path, option.name),
                type=_type(field, hints[option.name]),
                default=_default(option, field),
                allowed=allowed.describe,
                help=option.metadata["help"],
                words=allowed.words,
                secret=option.metadata["secret"],
            )
        )
        if nested := block_class(hints[option.name]):
            rows += _rows(nested, field.message_type, rows[-1].path)
    return rows


def _type(field: FieldDescriptor, hint: Any) -> str:
    if is_map(field):
        return "map of string to float"
    if is_repeated(field):
        return "list of int" if int in get_args(hint) else f"list of {_TYPES[field.cpp_type]}"
    return _TYPES[field.cpp_type]


def _default(option: Field[Any], field: FieldDescriptor) -> str:
    if is_required(option):
        return "required"
    if is_repeated(field) or field.message_type is not None:
        return ""
    if isinstance(option.default, bool):
        return str(option.default).lower()
    return f'"{option.default}"' if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else str(option.default)


def text_from_experiment(experiment: Experiment, *, secrets: bool = False) -> str:
    """The experiment in the language of spec files; reading it gives an equal experiment, but for `secrets` left out.

    A comment names each field of them: keys, and texts with URLs, which are written without what is secret.
    """
    message = new_message()
    left_out: list[str] = []
    _fill(message, experiment, "", None if secrets else left_out)
    text = text_format.MessageToString(message, as_utf8=True, use_short_repeated_primitives=True)
    return text + "".join(f"# {path}: a secret, not written here\n" for path in left_out)


def _fill(message: Message, block: Any, path: str, left_out: list[str] | None) -> None:
    for option in fields(block):
        name, value = option.name, getattr(block, option.name)
        if value is None:
            continue
        if left_out is not None:
            plain = type(value)() if option.metadata["secret"] else without_secrets(value)
            left_out += [join(path, name)] if plain != value else []
            value = plain
        if is_dataclass(value):
            inner = getattr(message, name)
            inner.SetInParent()
            _fill(inner, value, join(path, name), left_out)
        elif isinstance(value, Mapping):
            getattr(message, name).update(value)
        elif isinstance(value, tuple):
            getattr(message, name).extend(value)
        else:
            field: Any = message.DESCRIPTOR.fields_by_name[name]
            setattr(message, name, field.enum_type.values_by_name[value].number if field.enum_type else value)
