"""The only place where image files are opened: which formats, how large, and how many at a time.

Does not know: pixels.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from threading import RLock, local

import numpy as np
from PIL import Image, UnidentifiedImageError

from trt_cls import store_cache, stores
from trt_cls.errors import DataError, StoreError, TrtClsError, one_line
from trt_cls.files import read_at_most, regular_file
from trt_cls.urls import StorePath

COMMON = {"JPEG": "Jpeg", "PNG": "Png", "BMP": "Bmp", "PPM": "Ppm", "GIF": "Gif"}
FORMATS = {**COMMON, "TIFF": "Tiff", "WEBP": "WebP", "AVIF": "Avif"}
"""Accepted formats and Pillow's modules for them; those that are not common are imported for the first file of another
format. Never a format that starts a program (EPS) or refers to another file. Of several images in a file the first one
is read."""
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif",
    ".avif",
)  # fmt: skip
"""Suffixes of such files, in upper or lower case."""
LARGEST_FILE = 2**29 + 2**20
"""The size of the largest image as plain 8-bit RGB, and 1 MiB for what surrounds it."""
ALONE_BYTES, ALONE_PIXELS = 2**25, 2**25
"""Larger images are decoded one at a time in a process: one of 178 megapixels takes up to 2 GB meanwhile."""
OPEN_SHARDS = 16
"""Shards that a thread keeps open: twice `data.order.WINDOW`."""


@dataclass(frozen=True)
class Part:
    """An image file inside another file, a shard: its bytes there, and their CRC-32."""

    file: Path
    name: str
    """In the shard, for messages."""
    offset: int
    length: int
    crc32: int
    info: stores.ObjectInfo | None = None
    """What the index, or the store, says of an object."""

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"


Source = Path | Part | bytes
"""An image file, one inside a shard, or the content of one."""

_alone = RLock()
_thread = local()


@contextmanager
def holding() -> Iterator[None]:
    """A huge image that this thread opens in the block keeps other huge ones out until the block ends."""
    with ExitStack() as held:
        _thread.held = held
        try:
            yield
        finally:
            _thread.held = None


@contextmanager
def opened_image(source: Source) -> Iterator[tuple[Image.Image, bytes]]:
    """An image file, or its content, as Pillow opens it, with its content; not decoded yet.

    More pixels than Pillow's limit for decompression bombs (178,956,970) are refused. A huge image keeps other huge
    ones out until the block ends, or that of `holding`.

    Raises:
        DataError: no image, or one that is refused or breaks in the block; the message starts with its path.
        TrtClsError: there is not enough memory for it.
    """
    name = "" if isinstance(source, bytes) else f"{source}: "
    size = 0, 0
    try:
        with ExitStack() as stack:
            locks: ExitStack = getattr(_thread, "held", None) or stack
            content = _content(source, locks)
            image = stack.enter_context(_open(content))
            size = image.size
            if size[0] * size[1] > ALONE_PIXELS:
                locks.enter_context(_alone)
                locks.callback(_give_memory_back)
            yield image, content
    except MemoryError as error:
        raise _too_little_memory(name, size) from error
    except StoreError:
        raise
    except Exception as error:
        # Pillow's plugins let struct.error, SyntaxError, IndexError and more out of broken files
        if not isinstance(error, TrtClsError) and _is_short_of_memory(size):
            raise _too_little_memory(name, size) from error
        raise DataError(name + _reason(error)) from error


def _content(source: Source, locks: ExitStack) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, Part):
        _admit(source.length, locks)
        return _content_of_part(source)
    with regular_file(source) as (descriptor, size):
        _admit(size, locks)
        # nothing is read of a file that reports no size: those of /proc never end, or block
        return read_at_most(descriptor, size)


def _admit(size: int, locks: ExitStack) -> None:
    if size > LARGEST_FILE:
        raise DataError(f"{size:,} bytes found, expected at most {LARGEST_FILE:,}")
    if size > ALONE_BYTES:
        locks.enter_context(_alone)


class OpenShard:
    """An open shard; closed when the thread that reads it ends or has opened OPEN_SHARDS others."""

    def __init__(self, part: Part) -> None:
        if isinstance(part.file, StorePath):
            self.descriptor = store_cache.opened(part.file, part.info)
        else:
            with regular_file(part.file) as (descriptor, _):
                self.descriptor = os.dup(descriptor)
        self.status = os.fstat(self.descriptor)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _shard(part: Part) -> OpenShard:
    """The shard of an image; opened again only where another file has taken its place."""
    kept: OrderedDict[Path, OpenShard] | None = getattr(_thread, "shards", None)
    if kept is None:
        kept = _thread.shards = OrderedDict()
    found = kept.get(part.file)
    if found and not isinstance(part.file, StorePath):
        status = os.stat(part.file)
        found = found if os.path.samestat(status, found.status) else None
        if found:
            found.status = status
    if found is None:
        kept.pop(part.file, None)
        found = kept[part.file] = OpenShard(part)
        if len(kept) > OPEN_SHARDS:
            kept.popitem(last=False)
    return found


def _content_of_part(part: Part) -> bytes:
    shard, end = _shard(part), part.offset + part.length
    if end > (size := shard.status.st_size):
        raise DataError(f"the shard is truncated: it ends at byte {size:,}, the image at {end:,}; copy it again")
    content = os.pread(shard.descriptor, part.length, part.offset)
    if (found := zlib.crc32(content)) != part.crc32:
        raise DataError(
            f"the shard was changed: CRC-32 {found:08x} found, {part.crc32:08x} expected by its index; copy it again"
        )
    return content


def _give_memory_back() -> None:
    """Returns freed memory: glibc keeps it for each thread, so eight threads would keep a huge image each."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _open(content: bytes) -> Image.Image:
    with suppress(UnidentifiedImageError):
        return Image.open(BytesIO(content), formats=_common())
    return Image.open(BytesIO(content), formats=_all())


@cache
def _common() -> list[str]:
    return _imported(COMMON)


@cache
def _all() -> list[str]:
    """The names of all formats, once libtiff is silent."""
    # The handle of Pillow's own library finds the functions of the libtiff that it is linked with, if it is.
    pillow = ctypes.CDLL(str(import_module("PIL._imaging").__file__))
    for silenced in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if hasattr(pillow, silenced):
            getattr(pillow, silenced)(None)
    return _imported(FORMATS)


def _imported(formats: dict[str, str]) -> list[str]:
    """The names of those that this Pillow supports, once their modules are imported."""
    for plugin in formats.values():
        with suppress(ImportError):  # an older Pillow without AVIF
            import_module(f"PIL.{plugin}ImagePlugin")
    return [name for name in formats if name in Image.OPEN]


def _is_short_of_memory(size: tuple[int, int]) -> bool:
    """Whether an image failed because memory ran out; decoders often report that as broken data."""
    pixels = size[0] * size[1]
    if pixels < 2**22 or (Image.MAX_IMAGE_PIXELS and pixels > 2 * Image.MAX_IMAGE_PIXELS):
        return False
    try:
        np.empty(10 * pixels, np.uint8)  # Pillow's 4 bytes per pixel, 3 of ours, 3 on the way from one to the other
    except MemoryError:
        return True
    return False


def _too_little_memory(name: str, size: tuple[int, int]) -> TrtClsError:
    found = f"{size[0]}×{size[1]} pixels" if size[0] else "its content"
    return TrtClsError(
        f"{name}not enough memory to decode the image ({found}); expected some 10 bytes per pixel; "
        "free memory, lower the number of workers, or make the image smaller"
    )


def _reason(error: Exception) -> str:
    """Why a file can't be decoded, in a few words."""
    match error:
        case TrtClsError():
            return str(error)
        case UnidentifiedImageError():
            return "not an image of a known format"
        case Image.DecompressionBombError():
            return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which is taken for a decompression bomb"
        case FileNotFoundError():
            return "no such file"
        case OSError(strerror=str(strerror)):
            return strerror
        case _:
            return f"broken image ({one_line(error)})"
