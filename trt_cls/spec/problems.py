"""The problems of one spec, and where each field stands; every step of the loader writes to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt_cls.errors import Problem, did_you_mean
from trt_cls.spec.allowed import Allowed
from trt_cls.text import printable

MOST_PROBLEMS = 100
"""Reading ends there: a file with more is no spec, and each did-you-mean costs time."""


class TooManyProblems(Exception):
    """Ends the reading; never leaves the loader."""


def join(path: str, name: str) -> str:
    """The path of the field `name` in the block at `path`."""
    return f"{path}.{name}" if path else name


def quoted(text: str) -> str:
    """A piece of a user's text for a message: printable, and cut when it is long."""
    return printable(text if len(text) <= 60 else text[:57] + "...")


def shown(value: Any) -> str:
    """A value as a spec writes it, for a message."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{quoted(value)}"' if isinstance(value, str) else quoted(str(value))


class Report:
    """Collects problems; knows line or flag of every field that was given."""

    def __init__(self, name: str) -> None:
        self.name = printable(name)
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}
        self.flags: dict[str, str] = {}

    def place(self, line: int, path: str) -> None:
        """Remembers that `path` stands on `line`; the first place counts."""
        self.lines.setdefault(path, line)

    def add(self, path: str, message: str, *, where: str | None = None) -> None:
        """Adds a problem, at the field's own place unless `where` names another."""
        self.problems.append(Problem(where or self.where(path), printable(path), message))
        if len(self.problems) >= MOST_PROBLEMS:
            raise TooManyProblems

    def judge(self, value: Any, allowed: Allowed, path: str) -> None:
        """Reports the value of a field, or those of a list or map, outside of what is allowed there."""
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
        """The problems of the whole file, then line by line, then those of the flags."""
        return sorted(self.problems, key=self._position)

    def _position(self, problem: Problem) -> tuple[int, int]:
        if problem.where.startswith(f"{self.name}:"):
            return 1, int(problem.where.rpartition(":")[2])
        return (0, 0) if problem.where == self.name else (2, 0)

    def at(self, line: int) -> str:
        """The text of a place in the file."""
        return f"{self.name}:{line}"

    def where(self, path: str) -> str:
        """The flag that set the field, or its line, or that of the nearest block around it; at last the file."""
        while path:
            if path in self.flags:
                return self.flags[path]
            if path in self.lines:
                return self.at(self.lines[path])
            path = path.rpartition(".")[0]
        return self.name

    def given(self, path: str) -> bool:
        """Whether the field was written, in the file or as a flag."""
        return path in self.flags or path in self.lines

    def sound(self, *paths: str) -> bool:
        """Whether nothing is wrong at or below any of `paths`: what depends on them can be judged."""
        return not any(
            problem.path == path or problem.path.startswith((path + ".", path + "["))
            for problem in self.problems
            for path in paths
        )
