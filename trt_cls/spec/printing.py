"""Experiment → text, with every field written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message

from trt_cls.spec import experiment_pb2
from trt_cls.spec.experiment import Experiment
from trt_cls.spec.report import join


def text_from_experiment(experiment: Experiment, *, secrets: bool = False) -> str:
    """The experiment in the language of spec files; reading it gives an equal experiment, but for `secrets` left out.

    A comment names each of them.
    """
    message = experiment_pb2.Experiment()
    left_out: list[str] = []
    _fill(message, experiment, "", None if secrets else left_out)
    text = text_format.MessageToString(message, as_utf8=True, use_short_repeated_primitives=True)
    return text + "".join(f"# {path}: a secret, not written here\n" for path in left_out)


def _fill(message: Message, block: Any, path: str, left_out: list[str] | None) -> None:
    for option in fields(block):
        name, value = option.name, getattr(block, option.name)
        if value is None:
            continue
        if option.metadata["secret"] and value and left_out is not None:
            left_out.append(join(path, name))
        elif is_dataclass(value):
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
