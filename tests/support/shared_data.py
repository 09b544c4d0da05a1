"""Reference data: what `reference/` holds, pictures made by a recipe, and more of the same kind where it is at hand.

More stands in a folder `shared` beside the checkout, where there is one. Nothing but that depends on it.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from support import pictures
from trt_cls.data.folder import list_images

REFERENCE = Path(__file__).parents[1] / "reference"
SHARED = REFERENCE.parents[2] / "shared"
PHOTOS = SHARED / "data" / "photos.tar"
TAO_SPEC = REFERENCE / "tao-spec.txt"
"""A spec as TAO's documentation writes it."""


@cache
def tao_json(name: str) -> Any:
    """Figures made by NVIDIA's own code; those of `shared` where `reference/` has none of the name."""
    path = REFERENCE / f"{name}.gz"
    return json.loads(gzip.decompress(path.read_bytes()) if path.exists() else (SHARED / "tao" / name).read_bytes())


@cache
def tao_records(name: str) -> list[Any]:
    """The records of a file of figures, and those that only `shared` has."""
    records: list[Any] = tao_json(name)["records"]
    path = SHARED / "tao" / name
    more = json.loads(path.read_bytes())["records"] if path.exists() else []
    return [*records, *(record for record in more if record not in records)]


def layer_tables() -> list[str]:
    """Names of the networks whose layers are recorded."""
    files = [*REFERENCE.glob("layer_tables/*.json.gz"), *SHARED.glob("tao/layer_tables/*.json")]
    return sorted({path.name.partition(".")[0] for path in files})


def tao_files() -> list[dict[str, Any]]:
    """What is recorded of each Keras file of TAO's in `shared`, with its `path`; none where that is absent."""
    folder = SHARED / "tao" / "hdf5"
    manifest = folder / "manifest.json"
    records = json.loads(manifest.read_bytes()) if manifest.exists() else []
    return [record | {"path": folder / record["file"]} for record in records]


def odd_folders() -> list[Path]:
    """Folders of images in all of Pillow's modes and odd sizes, each with NVIDIA's results in `*.npz`."""
    beside = SHARED / "tao" / "preproc"
    return [_made("odd", _write_odd), *([beside] if beside.exists() else [])]


@cache
def preprocessed(folder: Path) -> Any:
    """NVIDIA's results on the images of one of `odd_folders`."""
    return json.loads((folder / "reference.json").read_bytes())


def odd_images() -> list[Path]:
    """All images of `odd_folders`."""
    return [path for folder in odd_folders() for path in list_images(folder)]


def cifar10() -> Path:
    """Folders `train` and `test` of 32×32 PNG images in 10 classes, which a small network learns."""
    return _made("shapes", pictures.write_shapes)


def photos() -> Path:
    """160 color pictures of many sizes in class folders."""
    return _made("photos", pictures.write_photos)


def all_photos() -> list[Path]:
    """`photos`, those of `shared`, and the images below the folder that `TRT_CLS_TEST_IMAGES` names."""
    folders = [photos()]
    if PHOTOS.exists():
        folders.append(_made("photos-of-shared", _unpack_photos))
    if own := os.environ.get("TRT_CLS_TEST_IMAGES"):
        folders.append(Path(own))
    return [path for folder in folders for path in list_images(folder)]


def _unpack_photos(folder: Path) -> None:
    with tarfile.open(PHOTOS) as archive:
        archive.extractall(folder, filter="data")


def _write_odd(folder: Path) -> None:
    pictures.write_odd(folder)
    for path in (REFERENCE / "preproc").iterdir():
        shutil.copy(path, folder)
    (folder / "reference.json").write_text(json.dumps(tao_json("preproc/reference.json")))


def _made(name: str, write: Callable[[Path], object]) -> Path:
    """A folder of the machine's temporary ones, made by the first process that asks and named for its recipe."""
    recipe = crc32(Path(pictures.__file__).read_bytes())
    target = Path(tempfile.gettempdir()) / f"trt-cls-test-data-{os.getuid()}" / f"{name}-{recipe:08x}"
    if not target.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=target.parent))
        write(beside)
        try:
            beside.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(beside)
            if not target.exists():
                raise
    return target
