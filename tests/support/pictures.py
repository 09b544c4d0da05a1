"""Pictures by a seeded recipe: the same pixels on every machine and with every version of numpy and Pillow.

Whole numbers and numpy's legacy generator alone, whose stream never changes. `photograph` also cuts from the two
photographs that scikit-learn carries, where it is installed.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from PIL import Image

ODD = {
    "s37x53": ("RGB", 37, 53),
    "s480x640": ("RGB", 480, 640),
    "s1000x123": ("RGB", 1000, 123),
    "gray200x150": ("L", 200, 150),
    "palette97x61": ("P", 97, 61),
    "rgba80x120": ("RGBA", 80, 120),
    "cmyk150x100": ("CMYK", 150, 100),
}
"""The images that preprocessing is compared on: Pillow's mode, width, height."""
SHAPES = ["box", "cross", "diamond", "disk", "frame", "grid", "ring", "rows", "columns", "wedge"]


def picture(seed: int, width: int, height: int) -> np.ndarray:
    """Gradients, stripes, shapes and noise: uint8 [H,W,3]."""
    random = RandomState(seed)
    y, x = np.ogrid[:height, :width]
    corners = random.randint(0, 256, (4, 3))
    shares = [(height - y) * (width - x), (height - y) * x, y * (width - x), y * x]
    pixels = sum(share[..., None] * corner for share, corner in zip(shares, corners, strict=True)) // (height * width)
    across, down = random.randint(1, 5, 2)
    period = random.randint(6, 30)
    wave = abs(2 * ((across * x + down * y) % period) - period) * 60 // period
    pixels += wave[..., None] - 30
    for _ in range(7):
        (left, top), (rx, ry) = random.randint(0, (width, height)), random.randint(1, (width // 3 + 2, height // 3 + 2))
        x0, y0 = abs(x - left), abs(y - top)
        inside = (x0 < rx) & (y0 < ry) if random.randint(2) else (x0 * ry) ** 2 + (y0 * rx) ** 2 < (rx * ry) ** 2
        pixels[inside] = (pixels[inside] + random.randint(-80, 336, 3)) // random.randint(1, 3)
    return (pixels + random.randint(-16, 17, pixels.shape)).clip(0, 255).astype(np.uint8)


def write_odd(folder: Path) -> None:
    """The images of `ODD` but the CMYK one: its pixels depend on who wrote the JPEG, so that the file is kept."""
    for name, (mode, _, _) in ODD.items():
        if mode != "CMYK":
            odd(name).save(folder / f"{name}.png")


def odd(name: str) -> Image.Image:
    """One of `ODD`."""
    mode, width, height = ODD[name]
    seed = list(ODD).index(name)
    pixels = picture(seed, width, height)
    if mode == "L":
        pixels = pixels[:, :, 1]
    elif mode == "P":
        pixels = (pixels >> 6) @ np.array([16, 4, 1], np.uint8)
    elif mode != "RGB":
        pixels = np.concatenate([pixels, picture(seed + 100, width, height)[:, :, :1]], axis=2)
    image = Image.frombytes(mode, (width, height), pixels.tobytes())
    if mode == "P":
        image.putpalette(RandomState(seed).randint(0, 256, 3 * 64).tolist())
    return image


def write_photos(folder: Path) -> None:
    """160 color pictures in 16 class folders: most are JPEG, of all kinds, and ten are large."""
    for seed in range(160):
        form = {"format": "PNG"} if seed % 8 == 7 else {"format": "JPEG", "quality": 60 + seed % 40}
        if form["format"] == "JPEG":
            form |= {"subsampling": seed % 3, "progressive": seed % 5 == 0}
        path = folder / f"class_{seed % 16:02}" / f"{seed:03}.{form['format'].lower()}"
        path.parent.mkdir(exist_ok=True)
        photograph(seed).save(path, **form)


def photograph(seed: int) -> Image.Image:
    """Cut from a photograph, every other one, or by the recipe."""
    random = RandomState(1000 + seed)
    largest = (1400, 1050) if seed % 16 == 0 else (420, 420)
    width, height = random.randint(40, largest)
    if seed % 2 or not _photographs():
        return Image.fromarray(picture(seed, width, height))
    source = _photographs()[seed // 2 % 2]
    left, top = random.randint(0, source.width - 100), random.randint(0, source.height - 100)
    right, bottom = random.randint(left + 50, source.width + 1), random.randint(top + 50, source.height + 1)
    return source.resize((width, height), Image.Resampling.LANCZOS, (left, top, right, bottom))


@cache
def _photographs() -> list[Image.Image]:
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "datasets" / "images"
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]


def write_shapes(folder: Path) -> None:
    """Folders `train` and `test` of 32×32 PNG images, a class per shape, 20 and 10 of each."""
    for part, count in (("train", 20), ("test", 10)):
        for label, name in enumerate(SHAPES):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = shape(name, RandomState(10_000 * (part == "test") + 100 * label + number))
                Image.fromarray(pixels).save(folder / part / name / f"{number:04}.png")


def shape(name: str, random: RandomState) -> np.ndarray:
    """One shape somewhere on a background of another brightness, with noise over both: uint8 [32,32,3]."""
    y, x = np.ogrid[:32, :32]
    size, (left, top) = random.randint(8, 13), random.randint(12, 20, 2)
    x0, y0 = abs(x - left), abs(y - top)
    box, round_ = np.maximum(x0, y0), x0**2 + y0**2
    inside = {
        "box": box < size - 2,
        "cross": (np.minimum(x0, y0) < 3) & (box < size),
        "diamond": x0 + y0 < size,
        "disk": round_ < (size - 1) ** 2,
        "frame": (box < size) & (box > size - 4),
        "grid": (x // 3 + y // 3) % 2 == 0,
        "ring": (round_ < size**2) & (round_ > (size - 4) ** 2),
        "rows": (y + top) % 6 + 0 * x < 3,
        "columns": (x + left) % 6 + 0 * y < 3,
        "wedge": (x - left < y - top) & (box < size),
    }[name]
    dark, bright = random.randint(0, 100, 3), random.randint(150, 256, 3)
    inks = (dark, bright) if random.randint(2) else (bright, dark)
    pixels = np.where(inside[..., None], *inks) + random.randint(-20, 21, (32, 32, 3))
    return pixels.clip(0, 255).astype(np.uint8)
