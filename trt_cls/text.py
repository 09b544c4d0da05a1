r"""Text that others wrote, names of files and classes above all: on a terminal, in CSV, beside a name that looks alike.

A name need not be valid UTF-8; Python holds each foreign byte as a lone surrogate (PEP 383). Where such a name goes:

    CSV                        the bytes that the name is (`FOREIGN` says how Python reads them back)
    JSON                       a `\udcXX` escape per byte, which Python's `json` and `os.fsencode` turn back into
                               the name; `json.dumps` writes them, or `files.write_text` where it leaves letters
    terminal, messages         `\udcXX` too
    HTML                       a `?` per byte
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import PurePath

FOREIGN = "surrogateescape"
"""How a file of names is opened: `open(path, encoding="utf-8", errors=FOREIGN)`."""
FORMULA = ("=", "+", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula; a minus too, where no number follows."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_VARIATIONS = "".join(map(chr, range(0xFE00, 0xFE10)))
_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝһӏАВЕКМНОРСТУХІЈЅαορνικΑΒΕΖΗΙΚΜΝΟΡΤΥΧıℓ",
    "aeopcyxijsdqwhlABEKMHOPCTYXIJSaopvikABEZHIKMNOPTYXil",
)
"""Letters of Cyrillic and Greek that look like Latin ones."""


def printable(text: object) -> str:
    r"""Text on one line of a terminal: what breaks, moves, colors or turns the line, or can't be seen, is escaped.

    Foreign bytes come out as `\udcXX`, and all else that is not printable as Python writes it in a literal.
    """
    line = str(text)
    return (
        line
        if line.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    )


def csv_row(cells: Sequence[object]) -> str:
    """One row by RFC 4180 with its line end: a cell with a separator, quote or line break stands in quotes.

    What a spreadsheet would run as a formula gets an apostrophe in front, or as a `Path` "./".
    """
    row = StringIO()
    # Line ends of "\r\n" make csv quote both characters; a row still ends in "\n" alone, as TAO's do.
    csv.writer(row, lineterminator="\r\n").writerow([_no_formula(cell) for cell in cells])
    return row.getvalue().removesuffix("\r\n") + "\n"


def listed(values: Iterable[object], most: int = 5) -> str:
    """The first few, comma-separated, and how many more there are."""
    texts = [str(value) for value in values]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def counted(count: int, noun: str) -> str:
    """A number of things, as in "1 image" and "2 images"."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


def has_foreign_bytes(name: str) -> bool:
    """Whether a name is no valid UTF-8."""
    return _SURROGATE.search(name) is not None


def looks_like(name: str, other: str) -> bool:
    """Whether two different names look the same, or nearly: composed or not, invisible characters, foreign letters."""
    return name != other and _skeleton(name) == _skeleton(other)


def difference(name: str, other: str) -> str:
    """Where two names that look alike differ, by code points: `its character 1 is U+0435 CYRILLIC …`."""
    start = next((i for i, (a, b) in enumerate(zip(name, other, strict=False)) if a != b), min(len(name), len(other)))
    end = 0
    while end < min(len(name), len(other)) - start and name[-1 - end] == other[-1 - end]:
        end += 1
    found, expected = (_characters(text[start : len(text) - end]) for text in (name, other))
    return f"its character {start + 1} is {found}, expected {expected}"


def lookalikes(names: Sequence[str], others: Sequence[str]) -> str:
    """`; "X" looks like "Y", but …` for the first pair of names that look alike and differ, or nothing."""
    pairs = ((a, b) for a, b in zip(names, others, strict=False) if looks_like(a, b))
    return next((f'; "{a}" looks like "{b}", but {difference(a, b)}' for a, b in pairs), "")


def _no_formula(cell: object) -> str:
    text = str(cell)
    if text.startswith(FORMULA) or (text.startswith("-") and not _is_number(text)):
        return f"./{text}" if isinstance(cell, PurePath) else f"'{text}"
    return text


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _skeleton(name: str) -> str:
    visible = (c for c in unicodedata.normalize("NFKC", name) if c.isprintable() and c not in _VARIATIONS)
    return "".join("".join(visible).split()).translate(_LOOKALIKES)


def _characters(part: str, most: int = 3) -> str:
    named = [f"U+{ord(c):04X} {unicodedata.name(c, '')}".rstrip() for c in part[:most]]
    return " ".join(named) + (" …" if len(part) > most else "") if part else "none"
