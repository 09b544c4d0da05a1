"""Text and values of a file → dataclasses: types, words, unknown fields, size and nesting are checked by msgspec.

Does not know: what the values mean. Ranges stand beside each kind of content, those of a contract in `contract.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import msgspec

from trt_cls.contract import Contract, faults_of
from trt_cls.errors import ArtefactError, DataError
from trt_cls.files import read_at_most, regular_file
from trt_cls.spec.problems import join
from trt_cls.text import printable

T = TypeVar("T")

MOST_BYTES = 1 << 26
"""Of a text: the contract of 100,000 classes with long names is a tenth of it."""
_PLACE = re.compile(r"(?P<what>.*?) - at `\$\.?(?P<path>.*)`", re.DOTALL)


class Format(msgspec.Struct):
    """The version of a file's content."""

    format: Literal[1]


class ContractFormat(msgspec.Struct):
    """That of a contract: 2 where it has one of LATER_FIELDS."""

    format: Literal[1, 2]


@dataclass(frozen=True)
class Origin:
    """What is being read, for messages."""

    file: str
    """The file's name."""
    part: str
    """What the file holds, such as " its contract"; empty: all of it."""
    remedy: str
    """What to do when it can't be read."""

    def refusal(self, path: str, fault: str) -> ArtefactError:
        """The error for `fault`, "X found, expected Y", in the field `path`."""
        where = f"{path}: " if path else ""
        return ArtefactError(printable(f"{self.file}:{self.part} can't be read: {where}{fault}; {self.remedy}"))


def decoded(kind: type[T], text: str | bytes, source: Origin, formats: type[msgspec.Struct] | None = Format) -> T:
    """The dataclass `kind` in the JSON object `text`; `formats`: the versions it may have; None: it has none.

    Raises:
        ArtefactError: the text is no JSON, or a field is missing, unknown, of another type or not one of its values.
    """
    if len(text) > MOST_BYTES:
        raise source.refusal("", f"{len(text):,} bytes found, expected at most {MOST_BYTES:,}")
    try:
        if formats:
            msgspec.json.decode(text, type=formats)
        value = msgspec.json.decode(text, type=kind)
        unknown = next(_unknown(kind, msgspec.json.decode(text), ""), None)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _refusal(error, source) from error
    if unknown is not None:
        raise source.refusal(_short(unknown), "unknown field")
    return value


def contract_from_json(text: str | bytes, source: str) -> Contract:
    """The contract in `text`.

    Raises:
        ArtefactError: `text` is no sound contract of a format known here; `source` names the file in the message.
    """
    origin = Origin(source, " its contract", "write the file again with this version")
    contract = decoded(Contract, text, origin, ContractFormat)
    require_sound_contract(contract, origin, "")
    return contract


def require_sound_contract(contract: Contract, source: Origin, prefix: str) -> None:
    """Refuses values beyond their ranges; `prefix` stands before the fields' paths in the message.

    Raises:
        ArtefactError: names the first.
    """
    for path, fault in faults_of(contract):
        raise source.refusal(prefix + path, fault)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a small regular file; others, which may have no end, are not read.

    Raises:
        DataError: it is larger than `most` bytes.
        OSError: it can't be read, or is no regular file.
    """
    with regular_file(path) as (descriptor, _):
        data = read_at_most(descriptor, most + 1)
    if len(data) > most:
        raise DataError(f"{path}: has more than {most:,} bytes; expected a text of a few pages; name another")
    return data


def _refusal(error: Exception, source: Origin) -> ArtefactError:
    if isinstance(error, RecursionError):
        return source.refusal("", "brackets nested too deep")
    found = _PLACE.fullmatch(str(error))
    what, path = (found["what"], found["path"]) if found else (str(error), "")
    return source.refusal(_short(path), _short(what[:1].lower() + what[1:]))


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:150]}…{text[-40:]}"


def _unknown(kind: Any, content: dict[str, Any], path: str) -> Iterator[str]:
    """The paths of fields that the dataclass `kind`, and those inside it, do not have."""
    hints = get_type_hints(kind)
    for name, value in content.items():
        if name not in hints and name != "format":
            yield join(path, name)
        for inner in (hint := hints.get(name), *get_args(hint)):
            if is_dataclass(inner) and isinstance(value, dict):
                yield from _unknown(inner, value, join(path, name))
