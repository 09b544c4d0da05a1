"""A spec file from bytes to a valid experiment: read, parse, override, convert, validate; all problems in one error.

Fields that protobuf reports as absent get the defaults of the dataclasses. A missing required field is None until the
end of validation, which then raises. Protobuf checks the type of a value of `--set` as in a file, but strings need no
quotes; ranges are checked later, for file and flags alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trt_cls.errors import Problem, SpecError, did_you_mean
from trt_cls.files import read_small_text
from trt_cls.spec import values
from trt_cls.spec.descriptors import block_class, is_map, is_repeated, new_message
from trt_cls.spec.experiment import Experiment
from trt_cls.spec.fields import Allowed
from trt_cls.spec.multi_label import with_its_metric
from trt_cls.spec.problems import Report, TooManyProblems, join, quoted
from trt_cls.spec.reading import message_from_text
from trt_cls.spec.reference import is_required
from trt_cls.spec.rules import FOLDERS, check_paths, check_relations, resolved
from trt_cls.text import printable
from trt_cls.urls import plain

MOST_BYTES = 64 * 1024
"""A spec has about two thousand bytes; a larger file (a model, `/dev/zero`) is not read to its end."""


def read_text(path: str | Path) -> str:
    """The text of a spec file.

    Raises:
        SpecError: the file does not exist, can't be read or is not text.
    """
    try:
        return read_small_text(path, MOST_BYTES, "a spec file: a page of text")
    except FileNotFoundError:
        raise _refused(path, f"no such file, expected a spec file{_similar(Path(path))}") from None
    except IsADirectoryError:
        raise _refused(path, "a folder found, expected a spec file in it: name the file") from None
    except PermissionError:
        raise _refused(path, "can't be read: permission denied, expected a file that you may read") from None
    except OSError as error:
        raise _refused(path, f"can't be read ({printable(error)}), expected a spec file") from None
    except ValueError as error:
        raise _refused(path, printable(error)) from None


def experiment_from_text(
    text: str, name: str, *, overrides: Sequence[str], needs: Sequence[str], files_of: Sequence[str]
) -> Experiment:
    """The experiment in `text`; `files_of` names the sections whose folders and files must exist.

    Raises:
        SpecError: with all problems that were found.
    """
    report = Report(name)
    experiment = None
    try:
        experiment = _read(text, report, overrides, needs, files_of)
    except TooManyProblems:
        report.problems.append(
            Problem(report.name, "", f"{len(report.problems)} problems found, the rest was not read")
        )
    if report.problems or experiment is None:
        raise SpecError(report.in_order())
    return with_its_metric(resolved(experiment, report), report)


def _read(
    text: str, report: Report, overrides: Sequence[str], needs: Sequence[str], files_of: Sequence[str]
) -> Experiment | None:
    message, complete = message_from_text(text, report)
    if complete and not report.problems and not report.lines:
        report.add("", "no field found, expected a spec: model_config { … } train_config { … } eval_config { … }")
        return None
    apply_overrides(message, overrides, report)
    experiment: Experiment = _with_plain_paths(_block(Experiment, message, "", report, complete))
    if complete:
        for section in needs:
            if getattr(experiment, section) is None and report.sound(section):
                report.add(section, f"missing, expected {section} {{ … }}: this command needs it")
        check_relations(experiment, report)
        check_paths(experiment, files_of, report)
    return experiment


def _with_plain_paths(experiment: Experiment) -> Experiment:
    """The experiment with datasets as they may be printed: without keys and signatures of their URLs."""
    for section in ("train_config", "eval_config"):
        config = getattr(experiment, section)
        found = {name: getattr(config, name, None) for name in FOLDERS}
        changed = {name: plain(path) for name, path in found.items() if path and plain(path) != path}
        if changed:
            experiment = replace(experiment, **{section: replace(config, **changed)})
    return experiment


def _refused(path: str | Path, message: str) -> SpecError:
    return SpecError([Problem(printable(str(path)), "", message)])


def _similar(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return ""
    return printable(did_you_mean(path.name, names))


def _block(cls: Any, message: Message, path: str, report: Report, complete: bool) -> Any:
    """The dataclass of a block; a missing field is a problem only if the spec is `complete`, read to its end."""
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
        nested = block_class(hints[name])
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
    if is_repeated(field):
        whole_numbers = int in get_args(hint)
        return tuple(int(item) if whole_numbers and float(item).is_integer() else item for item in value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value


def _missing(allowed: Allowed, field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return f"missing, expected {field.name} {{ … }}"
    return f"missing, expected {allowed.describe or 'a value'}"


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
    if not values.parse_into(message, field, value):
        raise _Refused(path, values.refusal(field, path, value))


def _items(value: str) -> list[str]:
    """The elements of `0,1` or `[0, 1]`."""
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return [item.strip() for item in inner.split(",")] if inner.strip() else []
