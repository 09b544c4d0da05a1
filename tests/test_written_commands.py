"""Each command that a text of the repository names exists, with each of its flags.

The commands of ```console blocks run too, in test_readme.py; those of clusters, GPUs and prose are only parsed here.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path

import click
import pytest

from trt_cls.cli import COMMANDS, Invocation, main, program
from trt_cls.cli.tao_flags import COMMON, LAUNCHERS, VERBS
from trt_cls.errors import TrtClsError

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.py")),
    *sorted((ROOT / "specs").glob("*.txt")),
]
OF_TAO = ("coming-from-tao.md", "differences-from-tao.md")
"""There `export --gen_ds_config` is TAO's; elsewhere `export --fp16` is short for `trt-cls export --fp16`."""
START = re.compile(r"(?<![\w/.-])(?:(?:bin/)?(trt-cls)|-m,? (trt_cls),?|(classification_tf1))(?= )")
END = re.compile(r"[|>#].*|[.:;]( .*|$)")
"""Of a command in a line: what a shell or a sentence has after it."""


def full_lines(text: str) -> Iterator[str]:
    """The commands of blocks of code, of YAML too, each with all its words."""
    for code in re.findall(r"^```(?:console|bash|yaml|text)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", "", code).splitlines():
            yield from cut(line)


def spans(text: str) -> Iterator[str]:
    """The commands in the sentences of a page, with some of their words."""
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        yield from cut(span)


def cut(line: str) -> Iterator[str]:
    """The commands in a line, each up to the next one."""
    starts = list(START.finditer(line))
    ends = [*(found.start() for found in starts), len(line)][1:]
    for found, end in zip(starts, ends, strict=True):
        words = line[found.end() : end]
        if line[: found.start()].count('"') % 2:  # in a string of YAML
            words = words.partition('"')[0]
        elif "command: [" in line:
            words = words.rstrip("]").replace(", ", " ")
        yield f"{found[1] or found[3] or 'trt-cls'} {END.sub('', words).strip()}"


def words_of(line: str) -> list[str]:
    """Without the dots that stand for more."""
    return [word for word in shlex.split(line, comments=True) if word.strip("…")]


def parse(words: list[str], *, complete: bool) -> None:
    """Raises click's error for what `trt-cls` does not know; `complete`: for what is missing or superfluous too."""
    command: click.Command = program
    context = click.Context(program, obj=Invocation(words))
    while isinstance(command, click.Group) and words and re.match("[a-z]", words[0]):
        name, *words = words
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no command {name}")
        command, context = found, click.Context(found, context, name)
    if command is program and not words[0].startswith("-"):  # COMMAND stands for any
        words = words[1:]
    if complete:
        command.make_context(command.name, list(words), context.parent)
        return
    try:
        command.make_parser(context).parse_args(list(words))
    except click.BadOptionUsage:  # `evaluate -o` is there, and takes a value
        if not words[-1].startswith("-"):
            raise


def parse_tao(words: list[str]) -> None:
    words = list(dropwhile(LAUNCHERS.__contains__, words))
    if not words:
        return
    if words[0].startswith("-"):
        assert words[0] in ("--help", "--markdown")
        return
    verb, *rest = words
    known = {name for flag in (*VERBS[verb].flags, *COMMON) for name in flag.names}
    assert {word for word in rest if re.match(r"--?[a-z]", word)} <= known


def check(line: str, *, complete: bool) -> None:
    words = words_of(line)
    if words[0] == "classification_tf1":
        parse_tao(words[1:])
    else:
        parse(words[1:], complete=complete and "$" not in line and "…" not in line)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_the_command_line_knows_each_command_and_flag(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        complete, parts = list(full_lines(text)), list(spans(text))
        if path.name not in OF_TAO:
            short = re.findall(rf"`((?:{'|'.join(COMMANDS)}) -[^`\n]+)`", text)
            parts += [f"trt-cls {line}" for line in short]
    else:
        complete, parts = [], [found for line in text.splitlines() for found in cut(line)]
    for line in complete + parts:
        try:
            check(line, complete=line in complete)
        except (click.ClickException, TrtClsError, AssertionError, KeyError, ValueError) as error:
            pytest.fail(f"{path.name}: {line}: {error}")


def test_messages_of_the_code_name_commands_that_exist() -> None:
    lines = [
        line
        for path in (ROOT / "trt_cls").rglob("*.py")
        if START.search(source := path.read_text(encoding="utf-8"))
        for text in literals(ast.parse(source))
        if START.search(text)
        for found in text.splitlines()
        for line in cut(found)
        if line.split()[1:] and line.split()[1] in COMMANDS
    ]
    assert len(lines) > 20
    for line in lines:
        check(line, complete=False)


def literals(tree: ast.Module) -> Iterator[str]:
    """The texts of a module, with an X for each value that is put into one."""
    parts = set[int]()
    for node in ast.walk(tree):  # a text with values comes before its parts
        if isinstance(node, ast.JoinedStr):
            parts.update(map(id, node.values))
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def test_what_was_found_is_most_of_what_is_written() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in TEXTS if path.suffix == ".md")
    lines = list(full_lines(pages))
    assert {line.split()[1] for line in lines} >= {*COMMANDS} - {"demo", "models"}
    assert any("--auto-resume" in line and line.startswith("trt-cls train -e /data") for line in lines)  # of YAML
    assert any("--save-every" in line for line in lines)  # of two lines
    assert any("--shard $JOB_COMPLETION_INDEX/32" in line for line in lines)
    assert "trt-cls train -e SPEC -r DIR --find-lr" in spans(pages)
    assert main(["evaluate", "--no-such-flag"]) == 2


@pytest.mark.parametrize("line", ["trt-cls train --epochs 3", "trt-cls shar X", "classification_tf1 train --epochs 3"])
def test_a_command_that_is_not_there_is_found(line: str) -> None:
    with pytest.raises((click.ClickException, AssertionError)):
        check(line, complete=False)
