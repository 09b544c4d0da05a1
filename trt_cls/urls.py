"""URLs of object stores as paths, whose user names, passwords and queries reach no text that is printed or written.

Does not know: what is in a store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PosixPath
from typing import Any

_REST = r"\S*[^\s'\"):,;.]"
"""Of a URL in a text: the punctuation after it is the text's."""
_AFTER = rf"(?:[^/\s?#]*@)?(?P<place>[^\s?#'\"]*)(?:[?#]{_REST})?"
_SCHEME = "(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
_IN_TEXT = re.compile(rf"(?P<scheme>[A-Za-z0-9+.-]{{2}}:/{{1,2}}){_AFTER}")
"""A `Path` leaves one slash of two."""
_URL = re.compile(rf"{_SCHEME}(?:(?P<user>[^/?#]*)@)?(?P<place>[^?#]*)(?:\?(?P<query>[^#]*))?.*", re.DOTALL)
_hidden: dict[str, tuple[str, str]] = {}
"""User information and query by what is left of a URL without them, and by its folder."""


class StorePath(PosixPath):
    """An object in a store, or a folder of them: its URL without what is secret. Nothing can be opened by it."""

    __slots__ = ()

    def __str__(self) -> str:
        scheme, _, place = super().__str__().partition(":/")
        return f"{scheme}://{place.lstrip('/')}"

    def __reduce__(self) -> Any:
        return _restored, (str(self), self._secret)

    @property
    def scheme(self) -> str:
        """As in "s3"."""
        return str(self).partition(":")[0]

    @property
    def url(self) -> str:
        """What opens it, secrets included."""
        scheme, _, place = str(self).partition("://")
        user, query = self._secret
        return f"{scheme}://{user}{'@' if user else ''}{place}{'?' if query else ''}{query}"

    @property
    def _secret(self) -> tuple[str, str]:
        return _hidden.get(str(self)) or _hidden.get(str(self.parent)) or ("", "")

    def absolute(self) -> StorePath:
        """Itself."""
        return self


def _restored(text: str, secret: tuple[str, str]) -> StorePath:
    if any(secret):
        _hidden[text] = secret
    return StorePath(text)


def location(text: str | Path) -> Path:
    """A path as it was given by a user: a file or folder, or the URL of an object."""
    found = _URL.fullmatch(text) if isinstance(text, str) else None
    if not found:
        return Path(text) if isinstance(text, str) else text
    scheme = found["scheme"].lower()
    if scheme == "file":
        return Path(re.sub("^localhost(?=/)", "", found["place"], flags=re.IGNORECASE))
    path = StorePath(f"{scheme}:/{found['place']}")
    if found["user"] or found["query"]:
        secret = found["user"] or "", found["query"] or ""
        _hidden[str(path)] = _hidden[str(path.parent)] = secret
    return path


def plain(text: str) -> str:
    """A path as it was given by a user, as it may be printed and written."""
    return str(location(text)) if "://" in text else text


def redacted(text: object) -> str:
    """Text of others, such as an error's, without what is secret in its URLs."""
    return _IN_TEXT.sub(r"\g<scheme>\g<place>", str(text))


def without_secrets(value: Any) -> Any:
    """A value of a spec with its texts `redacted`, those of lists and maps too."""
    if isinstance(value, Mapping):
        return {redacted(key): item for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(without_secrets, value))
    return redacted(value) if isinstance(value, str) else value
