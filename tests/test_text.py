"""Names of files and classes on a terminal, in CSV, and out of small files."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import sys
from pathlib import Path

import pytest

from trt_cls import terminal
from trt_cls.artefacts.classmap import read_classmap
from trt_cls.errors import did_you_mean
from trt_cls.files import read_small_text, write_text
from trt_cls.text import FOREIGN, counted, csv_row, printable

NAMES = ["a\nb", "c\rd", "e\r\nf", 'q"q', "x,y", "\udcff\udcfe", "é", " lead", "\u2028", "\t", "1;2", "'"]


def test_any_names_come_back_from_csv_as_they_are(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    with table.open("w", encoding="utf-8", errors=FOREIGN, newline="") as file:
        file.writelines(csv_row((Path("x") / name, name.strip("\t"), 0.5)) for name in NAMES)
    with table.open(encoding="utf-8", errors=FOREIGN, newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [[f"x/{name}", name.strip("\t"), "0.5"] for name in NAMES]
    assert b"x/\xff\xfe," in table.read_bytes()


@pytest.mark.parametrize("cell", ["=1+1", "@SUM(1)", "+cmd", "-cmd", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert next(csv.reader(io.StringIO(csv_row((cell, Path(cell))), newline=""))) == [f"'{cell}", f"./{cell}"]


def test_numbers_stay_numbers() -> None:
    assert csv_row((-1, "-0.5", "-1e-3")) == "-1,-0.5,-1e-3\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\nb\r\u2028", r"a\nb\r\u2028"),
        ("\udcff", r"\udcff"),
        ("a\u200bb\N{NO-BREAK SPACE}", r"a\u200bb\xa0"),
    ],
)
def test_nothing_moves_the_cursor_or_hides(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_a_log_line_is_one_printable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    terminal.prepare()
    root.warning("%s: left out", "a\n\x1b[31m")
    root.warning("%s: left out", "https://u:secret@h/x?signature=secret")
    assert sys.stderr.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "warning: a\\n\\x1b[31m: left out",
        "warning: https://h/x: left out",
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii", "utf-8"])
def test_a_stream_takes_every_character(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    terminal.prepare()
    print("max |Δp| − \udcff", flush=True)
    assert raw.getvalue().endswith(b"\\udcff\n")


@pytest.mark.parametrize(
    ("name", "known", "difference"),
    [
        ("cat\u200b", "cat", "its character 4 is U+200B ZERO WIDTH SPACE, expected none"),
        ("c\u0430t", "cat", "its character 2 is U+0430 CYRILLIC SMALL LETTER A, expected U+0061"),
        ("e\u0301", "é", "U+0301 COMBINING ACUTE ACCENT, expected U+00E9"),
        ("cat ", "cat", "its character 4 is U+0020 SPACE, expected none"),
    ],
)
def test_names_that_look_alike_are_distinguished(name: str, known: str, difference: str) -> None:
    assert difference in did_you_mean(name, ["dog", known])


def test_small_texts_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "classmap.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 0, "b": 1}')
    assert read_classmap(path) == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 2049, "more than 2 KiB found, expected a list"),
        ("text".encode("utf-16"), "UTF-16 found"),
        (b"a\0b", "byte 0 at 1"),
        (b"a\xff", "byte 0xff at 1 is not UTF-8, expected a list"),
    ],
)
def test_what_is_no_small_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_small_text(path, 2048, "a list")


def test_a_small_text_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        read_small_text("/dev/zero")


def test_a_pipe_without_a_writer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("trt_cls.files.PATIENCE", 0)
    with pytest.raises(OSError, match="nothing came"):
        read_small_text(tmp_path / "pipe")


def test_a_name_that_is_no_utf8_comes_back_from_json(tmp_path: Path) -> None:
    write_text(tmp_path / "x.json", json.dumps({"path": "é\udcff"}, ensure_ascii=False))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"path": "é\udcff"}


def test_one_thing_is_no_plural() -> None:
    assert [counted(count, "shard") for count in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
