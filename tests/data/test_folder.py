from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from trt_cls.artefacts.classmap import read_classmap, write_classmap
from trt_cls.data.folder import ImageFolder, image_folder, list_images
from trt_cls.errors import DataError


def tree(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def labels(folder: ImageFolder) -> list[tuple[str, int]]:
    return [(str(sample.path.relative_to(folder.root)), sample.label) for sample in folder.samples]


def test_class_folders_are_sorted_and_searched_to_the_bottom(tmp_path: Path) -> None:
    tree(tmp_path, "b/2.JPG", "b/1.png", "b/deep/er/3.TiFF", "a/z.webp", "a/notes.txt", "readme.md")
    tree(
        tmp_path,
        "a/.hidden.png",
        "a/.cache/x.png",
        ".git/x.png",
        "a/x.bmp",
        "a/x.pgm",
        "a/x.ppm",
        "a/x.jpeg",
        "a/x.tif",
    )
    folder = image_folder(tmp_path)
    assert folder.classes == ("a", "b")
    assert labels(folder) == [
        *[(f"a/{name}", 0) for name in ("x.bmp", "x.jpeg", "x.pgm", "x.ppm", "x.tif", "z.webp")],
        *[("b/1.png", 1), ("b/2.JPG", 1), ("b/deep/er/3.TiFF", 1)],
    ]


def test_the_order_of_given_classes_holds(tmp_path: Path) -> None:
    folder = image_folder(tree(tmp_path, "a/1.png", "b/2.png"), ["b", "a"])
    assert labels(folder) == [("b/2.png", 0), ("a/1.png", 1)]


def test_evaluation_may_lack_classes(tmp_path: Path) -> None:
    folder = image_folder(tree(tmp_path, "c/1.png"), ["a", "b", "c"], allow_missing=True)
    assert (folder.classes, labels(folder)) == (("a", "b", "c"), [("c/1.png", 2)])


@pytest.mark.parametrize(
    ("files", "classes", "message"),
    [
        ([], None, "no class folders"),
        (["x.png"], None, "no class folders"),
        (["a/1.png"], None, "only one class folder (a)"),
        (["a/1.txt", "b/"], None, "no images in its class folders"),
        (["a/1.png", "b/", "c/2.txt"], None, "no images for b, c"),
        (["a/1.png", "cats/1.png"], ["a", "cat"], 'cats is not among the 2 classes; rename or remove it; did you'),
        (["a/1.png", "b/1.png"], ["a", "b", "c", "d"], "no folder for c, d"),
        (["a/1.png"] + [f"x{n}/1.png" for n in range(7)], ["a"], "x0, x1, x2, x3, x4 and 2 more is not among"),
    ],
)  # fmt: skip
def test_folders_that_are_no_dataset(tmp_path: Path, files: list[str], classes: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        image_folder(tree(tmp_path, *files), classes)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("absent", "no such folder"), ("file", "a file; expected a folder")])
def test_the_root_must_be_a_folder(tmp_path: Path, name: str, message: str) -> None:
    tree(tmp_path, "file")
    with pytest.raises(DataError, match=message):
        image_folder(tmp_path / name)


def test_list_images_takes_a_file_or_a_folder(tmp_path: Path) -> None:
    tree(tmp_path, "2.png", "1.jpg", "sub/0.png", "notes.txt", ".hidden.png")
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert list_images(tmp_path) == [tmp_path / name for name in ("1.jpg", "2.png", "sub/0.png")]
    for name, message in (("absent", "no such file or folder"), ("empty", "no images below")):
        tree(tmp_path, *["empty/"] * (name == "empty"))
        with pytest.raises(DataError, match=message):
            list_images(tmp_path / name)


def test_a_classmap_is_read_back_in_index_order(tmp_path: Path) -> None:
    write_classmap(tmp_path / "classmap.json", ["dog", "café", "ant"])
    assert read_classmap(tmp_path / "classmap.json") == ("dog", "café", "ant")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 0, "b": 2}', "its indices are 0, 2; expected 0 to 1"),
        ('{"a": 1, "b": 2}', "expected 0 to 1"),
        ('{"a": 0, "b": 0}', "expected 0 to 1"),
        ('{"a": 0, "a": 1}', "a class name stands in it twice"),
        ('{"a": true, "b": 0}', "no class map"),
        ('{"a": "0"}', "no class map"),
        ("{}", "no class map"),
        ('["a"]', "no class map"),
        ("{", "no class map"),
        ("\xff", "no class map"),
    ],
)
def test_classmaps_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classmap.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_classmap(path)


def test_a_missing_classmap_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: the class map can't be read \(No such file"):
        read_classmap(tmp_path / "absent.json")


def test_a_folder_that_cannot_be_opened_does_not_count_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "a/1.png", "a/locked/2.png", "b/1.png")
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match=r"a/locked: the folder can't be read \(Permission denied\)"):
        image_folder(tmp_path)
