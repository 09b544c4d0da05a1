"""Class maps: `{"class name": index}` in JSON, as TAO's train and ours write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trt_cls.artefacts.decoding import read_bytes
from trt_cls.contract import faults_of_classes
from trt_cls.errors import DataError
from trt_cls.files import write_text
from trt_cls.text import listed, printable

FORM = 'expected JSON of the form {"cat": 0, "dog": 1}'


def read_classmap(path: Path) -> tuple[str, ...]:
    """Class names in the order of their indices, from a file of the form `{"cat": 0, "dog": 1}`.

    Raises:
        DataError: the file can't be read, a name is none, or its indices are not 0, 1, 2 … each once.
    """
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"), object_pairs_hook=_unique_names)
    except OSError as error:
        raise DataError(f"{path}: the class map can't be read ({error.strerror}); name another with -c") from error
    except RecursionError as error:
        raise DataError(f"{path}: no class map (brackets nested too deep); {FORM}") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DataError(f"{path}: no class map ({printable(str(error))}); {FORM}") from error
    if not isinstance(content, dict) or not content or any(type(index) is not int for index in content.values()):
        raise DataError(f"{path}: no class map; {FORM}")
    names = tuple(sorted(content, key=lambda name: int(content[name])))
    indices = [content[name] for name in names]
    if indices != list(range(len(indices))):
        found = listed(f"{index:.4g}" if abs(index) > 10**9 else index for index in indices)
        raise DataError(f"{path}: its indices are {found}; expected 0 to {len(indices) - 1}, each once")
    for field, fault in faults_of_classes(names):
        raise DataError(printable(f"{path}: {field}: {fault}; name the classes as their folders"))
    return names


def write_classmap(path: Path, classes: Sequence[str]) -> None:
    """Writes `{"class name": index}`; `read_classmap` reads it back."""
    content = {name: index for index, name in enumerate(classes)}
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a class name stands in it twice")
    return content
