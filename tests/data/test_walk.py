"""Each folder once, and no picture ignored silently."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from PIL import Image

from trt_cls.data.folder import image_folder, list_images
from trt_cls.errors import DataError


def dataset(root: Path) -> Path:
    for name in ("red/1.png", "red/deep/2.png", "blue/1.png", "blue/more/2.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path) -> list[tuple[str, int]]:
    return [(str(sample.path.relative_to(root)), sample.label) for sample in image_folder(root).samples]


PLAIN = [("blue/1.png", 0), ("blue/more/2.png", 0), ("red/1.png", 1), ("red/deep/2.png", 1)]


@pytest.mark.parametrize(
    "links",
    [
        {"red/loop": "."},
        {"red/a": ".", "red/b": ".."},
        {"red/up": "../.."},
        {"blue/other": "../red"},
        {"blue/other": "../red/deep"},
        {"red/again": "deep", "red/deep/self": "."},
    ],
)
def test_a_link_to_a_folder_of_the_dataset_adds_nothing(tmp_path: Path, links: dict[str, str]) -> None:
    root = dataset(tmp_path / "root")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2/other.png").touch()
    for link, target in links.items():
        (root / link).symlink_to(target)
    assert found(root) == PLAIN
    assert len(list_images(root)) == 4


def test_folders_elsewhere_are_followed_once(tmp_path: Path) -> None:
    root, elsewhere = dataset(tmp_path / "root"), dataset(tmp_path / "elsewhere")
    (elsewhere / "red/back").symlink_to(root)
    (root / "red/a").symlink_to(elsewhere / "red")
    (root / "red/b").symlink_to(elsewhere / "red")
    expected = [*PLAIN[:3], ("red/a/1.png", 1), ("red/a/deep/2.png", 1), PLAIN[3]]
    assert found(root) == expected
    (root / "blue/c").symlink_to(elsewhere / "red")
    with pytest.raises(DataError, match="expected each image below one class"):
        image_folder(root)


def test_class_folders_may_be_links_but_not_to_one_folder(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", dataset(tmp_path / "elsewhere")
    root.mkdir()
    (root / "a").symlink_to(elsewhere / "red")
    (root / "b").symlink_to(elsewhere / "blue")
    assert [label for _, label in found(root)] == [0, 0, 1, 1]
    (root / "c").symlink_to(elsewhere / "blue")
    with pytest.raises(DataError, match=r"root/c: the same folder as .*root/b"):
        image_folder(root)


@pytest.mark.parametrize(
    "name", ["@eaDir", "#recycle", ".thumbnails", "__MACOSX", "lost+found", "$RECYCLE.BIN", ".ipynb_checkpoints",
             "System Volume Information", "#snapshot", "@Recycle"],
)  # fmt: skip
def test_folders_of_nas_and_desktop_systems_are_neither_classes_nor_images(tmp_path: Path, name: str) -> None:
    root = dataset(tmp_path)
    for folder in (root / name, root / "red" / name):
        folder.mkdir()
        (folder / "thumb.png").touch()
    for file in ("Thumbs.db", ".DS_Store", "._1.png", "desktop.ini"):
        (root / "red" / file).touch()
    assert found(root) == PLAIN


def test_other_suffixes_of_taken_formats_are_taken(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    for suffix in ("jfif", "jpe", "gif", "avif", "JFIF", "pbm", "pnm"):
        (root / f"red/x.{suffix}").touch()
    assert len(found(root)) == 11


def test_pictures_that_are_not_taken_are_counted_once_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = dataset(tmp_path)
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    for name in ("a.heic", "b.heic", "c.jp2"):
        (root / "red" / name).touch()
    for name in ("no_suffix", "d.png.bak", "1.txt"):
        (root / "blue" / name).write_bytes(picture.getvalue())
    (root / "blue/notes").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        image_folder(root)
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(" not read")[0] for message in messages] == [
        f"{root}/blue: 2 pictures (1 .bak, 1 no suffix) are",
        f"{root}/red: 3 pictures (2 .heic, 1 .jp2) are",
    ]


def test_a_class_of_other_pictures_says_so(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    (root / "green").mkdir()
    (root / "green/a.heic").touch()
    with pytest.raises(DataError, match=r"no images for green; 1 picture \(1 \.heic\) is not read"):
        image_folder(root)


def test_a_class_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    (root / "\udcff\udcfe").mkdir()
    with pytest.raises(DataError, match="is not UTF-8"):
        image_folder(root)


def test_names_that_look_alike_are_distinguished(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    (root / "caf\N{LATIN SMALL LETTER E}\N{COMBINING ACUTE ACCENT}").mkdir()
    with pytest.raises(DataError, match=r'looks like "café", but its character 4 is U\+0065 .* U\+0301'):
        image_folder(root, ["red", "blue", "café"])
