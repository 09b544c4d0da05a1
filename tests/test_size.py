"""The measure of the package's size, on text whose size is known."""

from __future__ import annotations

import ast

import pytest

import size

TEXT = '''"""A module."""

import os  # a comment


def function() -> str:
    """What it does,

    at length.
    """
    return (
        """text
        """
    )
'''


def module(name: str, text: str) -> size.Module:
    return size.Module(name, text, ast.parse(text))


def test_docstrings_comments_and_blank_lines_do_not_count() -> None:
    assert size.token_lines(module("trt_cls.one", TEXT)) == 6


@pytest.mark.parametrize(
    "text",
    [
        "from trt_cls.two import name",
        "from trt_cls import two",
        "import trt_cls.two",
        "def f():\n    from trt_cls.two import name",
    ],
)
def test_an_import_circle_is_found(text: str) -> None:
    both = [module("trt_cls.one", text), module("trt_cls.two", "from trt_cls.one import other")]
    (fault,) = size.faults(both, circles_alone=True)
    assert fault.startswith("import circle: trt_cls.")


def test_imports_for_types_alone_close_no_circle() -> None:
    text = "if TYPE_CHECKING:\n    from trt_cls.two import Name"
    both = [module("trt_cls.one", text), module("trt_cls.two", "from trt_cls.one import other")]
    assert size.faults(both, circles_alone=True) == []


def test_a_function_and_a_module_too_long_are_faults() -> None:
    text = "def long():\n" + "    pass\n" * size.MAX_MODULE
    found = size.faults([module("trt_cls.one", text)])
    assert [fault.split(" ")[0] for fault in found] == ["trt_cls.one", "trt_cls.one.long"]
