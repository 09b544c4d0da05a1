"""Spec text → protobuf message, with the line of every problem of names, types and structure.

Protobuf's own parser stops at the first problem and does not keep lines. This parser uses protobuf's tokenizer, lets
protobuf parse each value alone, and continues after a problem. A text without problems is parsed by protobuf itself.
Does not know: what the fields mean, their defaults and ranges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trt_cls.spec import values
from trt_cls.spec.descriptors import is_map, is_repeated, new_message
from trt_cls.spec.problems import Report, join, quoted

_CLOSING = {"{": "}", "<": ">", "[": "]"}
_NO_VALUE = {"", ":", ",", ";", *_CLOSING, *_CLOSING.values()}


class _SyntaxStop(Exception):
    """The rest of the text can't be parsed; the problem is in the report."""


def message_from_text(text: str, report: Report) -> tuple[Message, bool]:
    """The message without the values that have problems, and whether the text was read to its end."""
    message = new_message()
    try:
        _Reader(text, report).read(message)
    except _SyntaxStop:
        return message, False
    if report.problems:
        return message, True
    parsed = new_message()
    try:
        text_format.Parse(text, parsed)
    except (text_format.ParseError, ValueError) as error:
        report.add("", quoted(str(error)))
    return parsed, True


class _Reader:
    """Parses one text; `path` is the full path of a field, `line` the line of its name."""

    def __init__(self, text: str, report: Report) -> None:
        self.tokens: Any = text_format.Tokenizer(text.split("\n"))  # its published types are wrong
        self.report = report
        self.entries: Counter[str] = Counter()

    def read(self, message: Message) -> None:
        while not self.tokens.AtEnd():
            self._field(message, "")

    def _field(self, message: Message, path: str) -> None:
        name = self.tokens.token
        if not self.tokens.TryConsumeIdentifier():
            self._stop('a field name or "}"' if path else "a field name")
        line = self._line()
        field = values.field_named(message, name)
        where = join(path, name)
        if field is None:
            self._unknown(message, where, line)
        elif where in self.report.lines and not is_repeated(field):
            self._problem(where, line, f"given twice, first on line {self.report.lines[where]}, expected once")
            self._skip_value()
        elif field.message_type is None:
            self._values(message, field, where, line)
        else:
            self._blocks(message, field, where, line)
        if not self.tokens.TryConsume(","):
            self.tokens.TryConsume(";")

    def _blocks(self, message: Message, field: FieldDescriptor, path: str, line: int) -> None:
        self.report.place(line, path)
        self.tokens.TryConsume(":")
        if is_map(field):
            self._each(field, lambda: self._entry(message, field, path))
        elif self.tokens.token not in ("{", "<"):
            self._problem(path, line, f"{self._skipped()} found, expected a block: {field.name} {{ … }}")
        else:
            inner = getattr(message, field.name)
            if other := values.other_branch(message, field):
                self._problem(path, line, f"found beside {other}, expected exactly one of the two")
                inner = type(inner)()
            else:
                inner.SetInParent()
            self._block(inner, path)

    def _block(self, message: Message, path: str) -> int:
        """Reads `{ … }`; returns the line of its opening bracket."""
        opening = self.tokens.token
        self.tokens.Consume(opening)
        line = self._line()
        while not self.tokens.TryConsume(_CLOSING[opening]):
            if self.tokens.AtEnd():
                self._unclosed(path, line, opening)
            self._field(message, path)
        return line

    def _entry(self, message: Message, field: FieldDescriptor, path: str) -> None:
        """Reads one `{ key: … value: … }` of a map."""
        if self.tokens.token not in ("{", "<"):
            found = self._skipped()
            self._problem(path, self._line(), f"{found} found, expected {{ key: … value: … }}")
            return
        entry = values.empty_entry(field)
        entry_path = f"{path}[{self.entries[path]}]"
        self.entries[path] += 1
        line = self._block(entry, entry_path)
        entries = getattr(message, field.name)
        if not self.report.sound(entry_path):
            return
        if entry.key in entries:
            self._problem(path, line, f"key {quoted(entry.key)} found twice, expected each key once")
        else:
            entries[entry.key] = entry.value
            self.report.place(line, join(path, entry.key))

    def _values(self, message: Message, field: FieldDescriptor, path: str, line: int) -> None:
        self.report.place(line, path)
        if self.tokens.TryConsume(":"):
            self._each(field, lambda: self._value(message, field, path))
        elif self.tokens.token in ("{", "<"):
            self._problem(path, line, f"a block found, expected a value: {field.name}: …")
            self._skip_nested()
        else:
            found = values.found(path, self.tokens.token) if self.tokens.token else "the end of the text"
            self._problem(path, line, f'{found} found, expected ":" and a value')
            if self.tokens.token not in _NO_VALUE and self.tokens.ParseError("").GetLine() == line:
                self._skipped()

    def _each(self, field: FieldDescriptor, read_one: Callable[[], None]) -> None:
        """Reads one value, or the list in brackets of a repeated field."""
        if not is_repeated(field) or not self.tokens.TryConsume("["):
            read_one()
        elif not self.tokens.TryConsume("]"):
            read_one()
            while not self.tokens.TryConsume("]"):
                if not self.tokens.TryConsume(","):
                    self._stop('"," or "]"')
                read_one()

    def _value(self, message: Message, field: FieldDescriptor, path: str) -> None:
        if self.tokens.token == "[":
            found = self._skipped()
            self._problem(path, self._line(), f"{found} found, expected one value")
            return
        source = self._scalar()
        line = self._line()
        if not values.parse_into(message, field, source):
            is_text = field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not is_repeated(field)
            self._problem(path, line, values.refusal(field, path, source + self._rest(source, is_text)))

    def _scalar(self) -> str:
        """The text of the next value: one token, or several adjacent strings."""
        token: str = self.tokens.token
        source = token
        if token in _NO_VALUE:
            self._stop("a value")
        self.tokens.NextToken()
        while token.startswith(values.QUOTES) and self.tokens.token.startswith(values.QUOTES):
            source += "\n" + self.tokens.token  # on its own line, so that it can't close the quotes before it
            self.tokens.NextToken()
        return source

    def _rest(self, source: str, is_text: bool = False) -> str:
        """What follows a refused value without a space, so that `/data/train` without quotes is one problem."""
        rest, last = "", source
        end = _NO_VALUE - {":", ","} if is_text else _NO_VALUE
        while not source.startswith(values.QUOTES) and self.tokens.token not in end and self._touches(last):
            last = self.tokens.token
            rest += last
            self.tokens.NextToken()
        return rest

    def _skipped(self) -> str:
        """Skips a value that can't be checked, and returns it for a message."""
        if self.tokens.token in _CLOSING:
            opening = self.tokens.token
            self._skip_nested()
            return f"{opening} … {_CLOSING[opening]}"
        source = self._scalar()
        return quoted((source + self._rest(source)).replace("\n", " "))

    def _unknown(self, message: Message, path: str, line: int) -> None:
        if self.tokens.token not in (":", "{", "<"):
            name = path.rpartition(".")[2]
            self.report.add(
                "", f"{quoted(name)} found, expected a field name and its value", where=self.report.at(line)
            )
            raise _SyntaxStop
        self._problem(path, line, values.unknown_field(message, path))
        self._skip_value()

    def _skip_value(self) -> None:
        if self.tokens.TryConsume(":") or self.tokens.token in ("{", "<"):
            self._skipped()

    def _skip_nested(self) -> None:
        """Skips everything up to the matching closing bracket, at any depth."""
        open_brackets: list[tuple[int, str]] = []
        while True:
            token = self.tokens.token
            if self.tokens.AtEnd():
                self._unclosed("", *open_brackets[-1])
            self.tokens.NextToken()
            if token in _CLOSING:
                open_brackets.append((self._line(), token))
            elif token == _CLOSING[open_brackets[-1][1]]:
                open_brackets.pop()
            elif token in _CLOSING.values():
                self._unclosed("", *open_brackets[-1])
            if not open_brackets:
                return

    def _touches(self, last: str) -> bool:
        """Whether the next token follows `last`, the one before it, without a space."""
        here, before = self.tokens.ParseError(""), self.tokens.ParseErrorPreviousToken("")
        return (here.GetLine(), here.GetColumn()) == (before.GetLine(), before.GetColumn() + len(last))

    def _line(self) -> int:
        """The line of the last token that was read."""
        line: int = self.tokens.ParseErrorPreviousToken("").GetLine()
        return line

    def _problem(self, path: str, line: int, message: str) -> None:
        self.report.add(path, message, where=self.report.at(line))

    def _unclosed(self, path: str, line: int, opening: str) -> NoReturn:
        self._problem(path, line, f'"{opening}" is never closed, expected "{_CLOSING[opening]}" after its fields')
        raise _SyntaxStop

    def _stop(self, expected: str) -> NoReturn:
        at_end = self.tokens.AtEnd()
        line = self._line() if at_end else self.tokens.ParseError("").GetLine()
        found = "the end of the text" if at_end else quoted(self.tokens.token)
        self._problem("", line, f"{found} found, expected {expected}")
        raise _SyntaxStop
