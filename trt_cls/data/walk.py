"""Finds the images below folders, visiting each folder once, whatever links there are.

Warns of images in formats that are not read. Does not know: classes.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

from trt_cls.distributed.processes import is_first
from trt_cls.errors import DataError
from trt_cls.files import read_at_most, regular_file
from trt_cls.preprocessing.image_file import EXTENSIONS

SYSTEM_FOLDERS = frozenset((
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "lost+found",
    "$recycle.bin", "recycler", "recycled", "system volume information", "__macosx", "network trash folder",
    "temporary items", "__pycache__", "~snapshot", "found.000",
))  # fmt: skip
"""Folders of NAS and desktop systems, in lower case; hidden ones (a dot in front) are ignored anyway."""
OTHER_IMAGES = frozenset((
    ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".jpm", ".jxl", ".jxr", ".wdp", ".tga", ".ico", ".icns",
    ".psd", ".psb", ".xcf", ".svg", ".eps", ".pcx", ".dds", ".exr", ".hdr", ".sgi", ".pfm", ".pam", ".dib", ".apng",
    ".jps", ".mpo", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw",
    ".qoi", ".fits", ".btf", ".tf8", ".jfi", ".jif", ".jpeg_large", ".jpg_large",
))  # fmt: skip
"""Suffixes of image formats that are not read."""
NOT_IMAGES = frozenset((
    ".txt", ".xml", ".json", ".jsonl", ".csv", ".tsv", ".md", ".html", ".yaml", ".yml", ".npy", ".npz", ".py", ".db",
    ".ini",
))  # fmt: skip
"""Suffixes of files that accompany images; of files with any other suffix, or none, the first bytes are read."""
MOST_OPENED, MOST_FOLDERS = 50, 20
"""Limits: files of other suffixes that are opened in a folder; folders with unread images that are named."""
BEGINNINGS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ",
    b"8BPS",
)  # fmt: skip
"""First bytes of image files."""
_READ = frozenset(EXTENSIONS)

_log = logging.getLogger(__name__)


def is_ignored(name: str) -> bool:
    """Whether a folder or file of this name is hidden, or belongs to a NAS or desktop system."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


class Walk:
    """Lists the images below several folders; no folder is listed twice.

    Links to folders are followed, but not to a folder that the walk reaches without them, nor to one that contains
    `tops`: its images are listed at their own path.
    """

    def __init__(self, root: Path, tops: Sequence[Path]) -> None:
        """`tops`: the folders that will be walked, all in `root` or `root` itself.

        Raises:
            DataError: two of them are the same folder, or one can't be read.
        """
        self._tops = tops
        self._owners: dict[_Identity, Path] = {}
        for top in tops:
            owner = self._owners.setdefault(_identity(top), top)
            if owner != top:
                raise _shared(top, owner)
        above = {_identity(folder) for folder in (root, *root.resolve().parents)}
        self._ignored = above - self._owners.keys()
        self._own: set[_Identity] | None = None
        self.not_read: dict[str, Counter[str]] = {}
        """Folders with images that are not read, and how many there are of each suffix."""

    def images(self, top: Path) -> Iterator[list[str]]:
        """The images below `top` by their paths there, a list per folder: sorted, files before sub-folders.

        Raises:
            DataError: a folder can't be read, or belongs to another of the tops too.
        """
        open_folders = [str(top)]
        while open_folders:
            folder = open_folders.pop()
            files, folders, links = _entries(folder, self.not_read)
            below_top = folder[len(str(top)) :].lstrip("/")
            yield [f"{below_top}/{name}" for name in files] if below_top else files
            below = [*folders, *(name for name in links if not self._is_reached(os.path.join(folder, name)))]
            paths = [os.path.join(folder, name) for name in sorted(below)]
            open_folders += [path for path in paths if self._is_new(path, top)][::-1]

    def warn(self) -> None:
        """Warns of images that are not read, a line per folder, once per process and only in the first of several."""
        if not is_first():
            return
        for folder, kinds in list(self.not_read.items())[:MOST_FOLDERS]:
            expected = f"expected files ending in {' '.join(EXTENSIONS)}"
            _warn_once(f"{folder}: {_counted(kinds)} not read; {expected}; convert or rename them")
        more = list(self.not_read.values())[MOST_FOLDERS:]
        if more:
            _warn_once(f"in {len(more)} more folders: {_counted(sum(more, Counter[str]()))} not read")

    def not_read_below(self, top: Path) -> str:
        """`; 3 pictures there are not read (3 .heic)`, or nothing."""
        inside = [kinds for folder, kinds in self.not_read.items() if Path(folder).is_relative_to(top)]
        return f"; {_counted(sum(inside, Counter[str]()))} not read" if inside else ""

    def _is_new(self, folder: str, top: Path) -> bool:
        identity = _identity(folder)
        if identity in self._ignored:
            return False
        if identity not in self._owners:
            self._owners[identity] = top
            return True
        if self._owners[identity] != top:
            raise _shared(folder, self._owners[identity])
        return False

    def _is_reached(self, link: str) -> bool:
        """Whether the walk reaches the folder that a link leads to without it."""
        if self._own is None:  # listed only where there is a link at all
            self._own = {*self._owners, *map(_identity, _plain_folders(self._tops))}
        return _identity(link) in self._own


_Identity = tuple[int, int]


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


def _identity(folder: str | Path) -> _Identity:
    try:
        found = os.stat(folder)
    except OSError as error:
        raise _unreadable(error) from error
    return found.st_dev, found.st_ino


def _plain_folders(tops: Iterable[Path]) -> Iterator[str]:
    """All folders below `tops` that are reached without a link."""
    for parent, folders, _ in chain.from_iterable(map(os.walk, tops)):
        folders[:] = [name for name in folders if not is_ignored(name)]
        yield from (os.path.join(parent, name) for name in folders if not os.path.islink(os.path.join(parent, name)))


def _entries(folder: str, not_read: dict[str, Counter[str]]) -> tuple[list[str], list[str], list[str]]:
    """The names of images, sorted, of folders and of links to folders; counts images that are not read."""
    files: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                try:
                    is_folder = entry.is_dir()
                except OSError:  # a link that leads to itself
                    is_folder = False
                if is_folder:
                    if not is_ignored(name):
                        (links if entry.is_symlink() else folders).append(name)
                elif name[name.rfind(".") :].lower() in _READ:
                    files.append(name)
                else:
                    others.append(name)
    except OSError as error:
        raise _unreadable(error) from error
    kinds = _images_among(folder, others) if others else None
    if kinds:
        not_read[folder] = kinds
    return sorted(files), folders, links


def _images_among(folder: str, names: Iterable[str]) -> Counter[str]:
    """How many of the files are images by suffix or first bytes, by suffix."""
    kinds: Counter[str] = Counter()
    opened = 0
    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in OTHER_IMAGES:
            kinds[suffix] += 1
        elif suffix not in NOT_IMAGES and opened < MOST_OPENED:
            opened += 1
            if _begins_as_an_image(os.path.join(folder, name)):
                kinds[suffix or "no suffix"] += 1
    return kinds


def _begins_as_an_image(path: str) -> bool:
    try:
        with regular_file(path) as (descriptor, size):
            start = read_at_most(descriptor, min(size, 16))
    except OSError:
        return False
    box = start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    return start.startswith(BEGINNINGS) or box or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def _counted(kinds: Counter[str]) -> str:
    count = kinds.total()
    listed = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return f"{count} pictures ({listed}) are" if count != 1 else f"1 picture ({listed}) is"


def _shared(folder: str | Path, owner: Path) -> DataError:
    return DataError(
        f"{folder}: the same folder as {owner}, or one in it; expected each image below one class; "
        "remove one of them, or the link"
    )


def _unreadable(error: OSError) -> DataError:
    """A folder that can't be opened would otherwise count as empty."""
    return DataError(f"{error.filename}: the folder can't be read ({error.strerror}); make it readable")
