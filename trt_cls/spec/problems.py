"""The problems of one spec with their places; shared by all steps of the loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt_cls.errors import Problem, did_you_mean
from trt_cls.spec.fields import Allowed
from trt_cls.text import printable
from trt_cls.urls import redacted

MOST_PROBLEMS = 100
"""Reading stops after so many: such a file is not a spec, and each "did you mean" costs time."""


class TooManyProblems(Exception):
    """Stops the reading; caught by the loader."""


def join(path: str, name: str) -> str:
    """The path of the field `name` in the block at `path`."""
    return f"{path}.{name}" if path else name


def quoted(text: str) -> str:
    """A user's text for a message: printable, without the secrets of URLs, cut to 60 characters."""
    text = redacted(text)  # before the cut, which may hide the end of a secret
    return printable(text if len(text) <= 60 else text[:57] + "...")


def shown(value: Any) -> str:
    """A value as a spec writes it, for a message."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{quoted(value)}"' if isinstance(value, str) else quoted(str(value))


class Report:
    """Collects problems; knows the line or flag of every field that was given."""

    def __init__(self, name: str) -> None:
        self.name = printable(name)
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}
        self.flags: dict[str, str] = {}

    def place(self, line: int, path: str) -> None:
        """Records the line of a field; the first one counts."""
        self.lines.setdefault(path, line)

    def add(self, path: str, message: str, *, where: str | None = None) -> None:
        """Adds a problem, at the field's place unless `where` is given."""
        self.problems.append(Problem(where or self.where(path), printable(path), message))
        if len(self.problems) >= MOST_PROBLEMS:
            raise TooManyProblems

    def judge(self, value: Any, allowed: Allowed, path: str) -> None:
        """Adds a problem for a value (each value of a list or map) that is not allowed."""
        if isinstance(value, Mapping):
            for key, item in value.items():
                self.judge(item, allowed, join(path, key))
        elif isinstance(value, tuple):
            for item in value:
                self.judge(item, allowed, path)
        elif not allowed.accepts(value):
            hint = did_you_mean(value, allowed.words) if isinstance(value, str) else ""
            self.add(path, f"{shown(value)} found, expected {allowed.describe}{hint}")

    def in_order(self) -> list[Problem]:
        """The problems: those without a line first, then by line, then those of flags."""
        return sorted(self.problems, key=self._position)

    def _position(self, problem: Problem) -> tuple[int, int]:
        if problem.where.startswith(f"{self.name}:"):
            return 1, int(problem.where.rpartition(":")[2])
        return (0, 0) if problem.where == self.name else (2, 0)

    def at(self, line: int) -> str:
        """A line of the file, for a message."""
        return f"{self.name}:{line}"

    def where(self, path: str) -> str:
        """The flag or line that set the field, else the line of the nearest block around it, else the file."""
        while path:
            if path in self.flags:
                return self.flags[path]
            if path in self.lines:
                return self.at(self.lines[path])
            path = path.rpartition(".")[0]
        return self.name

    def given(self, path: str) -> bool:
        """Whether the field was given, in the file or by a flag."""
        return path in self.flags or path in self.lines

    def sound(self, *paths: str) -> bool:
        """Whether no problem was found at or below any of `paths`, so that what depends on them can be checked."""
        return not any(
            problem.path == path or problem.path.startswith((path + ".", path + "["))
            for problem in self.problems
            for path in paths
        )


def check_choice(path: str, block: Any, report: Report) -> None:
    """Reports a block without one of its branches; two are refused where they are read."""
    branches = {} if block is None else vars(block)
    if branches and report.sound(path) and not any(branches.values()):
        report.add(path, f"an empty block found, expected exactly one of {', '.join(branches)}")
