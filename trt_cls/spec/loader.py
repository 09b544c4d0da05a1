"""A spec file from bytes to a valid experiment: read, parse, override, convert, validate; all problems in one error.

Fields that protobuf reports as absent get the defaults of the dataclasses. A missing required field is None until the
end of validation, which then raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trt_cls.errors import Problem, SpecError, did_you_mean
from trt_cls.files import read_small_text
from trt_cls.spec.allowed import Allowed
from trt_cls.spec.descriptors import block_class, is_map, is_repeated
from trt_cls.spec.experiment import Experiment
from trt_cls.spec.multi_label import with_its_metric
from trt_cls.spec.overrides import apply_overrides
from trt_cls.spec.problems import Report, TooManyProblems, join
from trt_cls.spec.reading import message_from_text
from trt_cls.spec.reference import is_required
from trt_cls.spec.rules import check_paths, check_relations, resolved, with_plain_paths
from trt_cls.text import printable

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
    experiment: Experiment = with_plain_paths(_block(Experiment, message, "", report, complete))
    if complete:
        for section in needs:
            if getattr(experiment, section) is None and report.sound(section):
                report.add(section, f"missing, expected {section} {{ … }}: this command needs it")
        check_relations(experiment, report)
        check_paths(experiment, files_of, report)
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
