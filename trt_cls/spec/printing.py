"""Experiment → text, with every field written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message

from trt_cls.spec import experiment_pb2
from trt_cls.spec.experiment import Experiment


def text_from_experiment(experiment: Experiment) -> str:
    """The experiment in the language of spec files; reading it gives an equal experiment."""
    message = experiment_pb2.Experiment()
    _fill(message, experiment)
    return text_format.MessageToString(message, as_utf8=True, use_short_repeated_primitives=True)


def _fill(message: Message, block: Any) -> None:
    for option in fields(block):
        name, value = option.name, getattr(block, option.name)
        if value is None:
            continue
        if is_dataclass(value):
            inner = getattr(message, name)
            inner.SetInParent()
            _fill(inner, value)
        elif isinstance(value, Mapping):
            getattr(message, name).update(value)
        elif isinstance(value, tuple):
            getattr(message, name).extend(value)
        else:
            field: Any = message.DESCRIPTOR.fields_by_name[name]
            setattr(message, name, field.enum_type.values_by_name[value].number if field.enum_type else value)
