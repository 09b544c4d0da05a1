"""Small copies of images, as text that stands in a page."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from trt_cls.errors import TrtClsError
from trt_cls.preprocessing.gate import opened
from trt_cls.preprocessing.images import eight_bit, loaded

SIDE = 128
"""Pixels of the longer side; at quality 75 a photograph takes 4 kB, pure noise 10 kB."""
QUALITY = 75
ICON = 64
"""Images up to this side are kept without loss: artefacts of JPEG would hide what they show."""
WORKERS = 4


def thumbnails(paths: Iterable[Path]) -> dict[Path, str]:
    """A `data:` URI for each of `paths`; none for those that can't be read any more."""
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(WORKERS) as pool:
        made = zip(distinct, pool.map(_thumbnail, distinct), strict=True)
        return {path: uri for path, uri in made if uri is not None}


def _thumbnail(path: Path) -> str | None:
    try:
        with opened(path) as (image, _):
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG decodes at a fraction of the size, several times faster
            small = eight_bit(loaded(image), 3)
            small.thumbnail((SIDE, SIDE))
    except TrtClsError:
        return None
    kind = "png" if max(small.size) <= ICON else "jpeg"
    content = BytesIO()
    small.save(content, kind, quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
