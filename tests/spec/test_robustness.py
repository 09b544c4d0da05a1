"""Whatever stands in a file, loading it gives an experiment or a SpecError with printable one-line problems."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf import text_format
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.shared_data import TAO_SPEC
from trt_cls.errors import Problem, SpecError
from trt_cls.spec import load, loads
from trt_cls.spec.descriptors import new_message
from trt_cls.spec.problems import Report
from trt_cls.spec.reading import message_from_text

BASE = TAO_SPEC.read_text()
LINES = BASE.splitlines()
TOKENS = re.findall(r'"[^"]*"|\w[\w.]*|\S|\n', re.sub("#.*", "", BASE))

NASTY = st.sampled_from([
    *"{}<>[]:,;\"'\\#\n\0\x1b\x85\u2028\ud800é",
    *("nan", "-inf", "1e999", "9" * 5000, "-0", "0x1F", "010", "1_0", "0.1f", "true"),
    *("optimizer", "image_mean", "key", "sgd { }", "arch: 1", "[a.b]", "[type.googleapis.com/x] { }"),
    *('"\\d"', '"\\ud800"', '"\\377"', "{" * 2000, "a {" * 500),
])  # fmt: skip


def problems_of(read: Callable[[], object]) -> list[Problem]:
    """The problems that `read` raises; nothing else may come out of it."""
    try:
        read()
    except SpecError as error:
        return list(error.problems) or [Problem("", "", "")]
    return []


def load_safely(text: str, overrides: Sequence[str] = ()) -> None:
    needs = ["train_config", "eval_config"]
    for problem in problems_of(lambda: loads(text, overrides=overrides, needs=needs, paths=True)):
        assert str(problem).isprintable()
        assert problem.message
        assert problem.where


@settings(deadline=None)
@given(st.text(st.characters()) | st.lists(NASTY | st.text(max_size=3)).map(" ".join))
@example("")
@example("\ufeff")
def test_any_text(text: str) -> None:
    load_safely(text)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(BASE)), st.integers(0, 40), NASTY | st.text(max_size=5)), max_size=4))
def test_a_spec_with_random_splices(splices: list[tuple[int, int, str]]) -> None:
    text = BASE
    for start, length, inserted in splices:
        text = text[:start] + inserted + text[start + length :]
    load_safely(text)


@settings(deadline=None)
@given(st.lists(st.sampled_from(LINES) | NASTY, max_size=60))
def test_lines_of_a_spec_in_any_order(lines: list[str]) -> None:
    load_safely("\n".join(lines))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(TOKENS) - 1), NASTY | st.sampled_from(TOKENS)), max_size=3))
def test_the_walk_finds_every_mistake_that_protobuf_finds(changes: list[tuple[int, str]]) -> None:
    tokens = list(TOKENS)
    for position, token in changes:
        tokens[position] = token
    report, text = Report("spec.txt"), " ".join(tokens)
    message, _ = message_from_text(text, report)
    # A mistake that only protobuf's own parse of the whole text found would stand without a line.
    assert all(problem.where.startswith("spec.txt:") for problem in report.problems)
    if not report.problems:
        assert message == text_format.Parse(text, new_message())


@settings(deadline=None)
@given(st.sampled_from(LINES), NASTY | st.text())
def test_a_spec_with_one_value_replaced(line: str, value: str) -> None:
    name = line.partition(":")[0]
    load_safely(BASE.replace(line, f"{name}: {value}", 1))


@settings(deadline=None)
@given(
    st.sampled_from(["train_config", "model_config.freeze_blocks", "train_config.image_mean", "model_config.arch", ""]),
    st.text(st.characters()) | NASTY,
)
def test_any_flag(path: str, value: str) -> None:
    for override in (f"{path}={value}", f"{path}.{value}=1", value):
        load_safely(BASE, [override])


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_in_a_file(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        assert all(problem.where.startswith(file.name) for problem in problems_of(lambda: load(file.name)))
