"""labels.csv: what is read, what is skipped and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.labels_csv import labeled_folder
from trt_cls.data.shard_writer import write_shards
from trt_cls.data.split import Dataset, halves, split_rows
from trt_cls.errors import DataError, RequestError


def written(root: Path, text: str | bytes, *images: str) -> Path:
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def listing(folder: ImageFolder) -> dict[str, list[str]]:
    return {
        sample.path.relative_to(folder.root).as_posix(): [folder.classes[index] for index in sample.indices]
        for sample in folder.samples
    }


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("header", [b"", b"path,labels\r\n"])
def test_rows_are_read_by_rfc_4180_with_or_without_header_and_byte_order_mark(
    tmp_path: Path, mark: bytes, header: bytes
) -> None:
    rows = b'"a,""b"".png",dog|cat\r\nsub/c.png,"cat"\r\n\r\nd\xff.png,\n'
    images = 'a,"b".png', "sub/c.png", b"d\xff.png".decode("utf-8", "surrogateescape")
    folder = labeled_folder(written(tmp_path, mark + header + rows, *images), "labels.csv")
    assert folder.classes == ("cat", "dog")
    assert listing(folder) == {images[0]: ["cat", "dog"], images[2]: [], images[1]: ["cat"]}
    assert folder.skipped == ()


def test_the_order_of_given_classes_holds_and_evaluation_may_lack_some(tmp_path: Path) -> None:
    written(tmp_path, "1.png,cat", "1.png")
    folder = labeled_folder(tmp_path, "labels.csv", ["dog", "cat"], allow_missing=True)
    assert (folder.classes, folder.samples[0].indices) == (("dog", "cat"), (1,))
    with pytest.raises(DataError, match="no image has the label dog; expected one or more of each class"):
        labeled_folder(tmp_path, "labels.csv", ["dog", "cat"])


def test_what_is_listed_or_present_alone_is_skipped_with_its_reason(tmp_path: Path) -> None:
    written(tmp_path, "1.png,a\ngone.png,b\n.hidden.png,a\n", "1.png", "more/2.png", ".hidden.png")
    folder = labeled_folder(tmp_path, "labels.csv", ["a", "b"], allow_missing=True)
    assert listing(folder) == {"1.png": ["a"]}
    assert {image.path.name: image.reason.split(",")[0] for image in folder.skipped} == {
        "2.png": "not in labels.csv",
        "gone.png": "no such file",
        ".hidden.png": "hidden",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.png,a\n./1.png,b\n", "labels.csv, line 2: 1.png found twice; expected each path once"),
        ("1.png\n", "line 1: cells found: 1; expected rows path,label"),
        ("1.png,a,b\n", "line 1: cells found: 3"),
        ("1.png,a||b\n", 'line 1: label "" found'),
        ("1.png,a| b\n", 'line 1: label " b" found'),
        ("1.png,a|a\n", '"a|a" found; expected each label once'),
        ("../1.png,a\n", 'path "../1.png" found; expected one in this folder'),
        ("/1.png,a\n", 'path "/1.png" found; expected one in this folder'),
        (",a\n", 'path "" found'),
        ('"1.png,a\n', "line 1: unexpected end of data; expected rows"),
        ("path,labels\n", "no rows"),
        ("1.png,\n", "no image has a label"),
        ("2.png,a\n", "none of its 1 paths is an image in"),
        ("1.png,a\n".encode("utf-16"), "no text in UTF-8"),
        (b"1.png,\xff\n", "expected text"),
    ],
)
def test_rows_that_are_not_valid_are_refused_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        labeled_folder(written(tmp_path, text, "1.png"), "labels.csv")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [(["cap", "b"], 'cat is not among the 2 classes; .*did you mean "cap"'), (["cat", "a|b"], r"a\|b has a \| in its")],
)
def test_classes_that_do_not_fit_are_refused(tmp_path: Path, classes: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        labeled_folder(written(tmp_path, "1.png,cat\n", "1.png"), "labels.csv", classes)


def test_a_missing_list_is_refused_and_one_without_its_field_is_pointed_to(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv: can't be read \(No such file"):
        labeled_folder(tmp_path, "labels.csv")
    with pytest.raises(DataError, match=r"set extensions \{ labels: "):
        image_folder(written(tmp_path, "1.png,cat\n", "1.png"))


def test_each_label_is_divided_over_both_parts(tmp_path: Path) -> None:
    """Of 120 images with up to three of five labels, and the rarest on four of them."""
    rows = [f"{n}.png,{'|'.join(c for k, c in enumerate('abcde') if n % (2 + 7 * k) == 0)}" for n in range(120)]
    written(tmp_path, "\n".join(rows), *(f"{n}.png" for n in range(120)))
    train, val = (Dataset(tmp_path, part, 0.25, labels="labels.csv").labeled() for part in ("train", "val"))
    assert len(train.samples) + len(val.samples) == 120
    for label in range(5):
        counts = [sum(label in sample.indices for sample in folder.samples) for folder in (train, val)]
        assert min(counts) >= 1
        assert abs(counts[1] - 0.25 * sum(counts)) <= 2
    assert ("0.png", "a|b|c|d|e") in [row[:2] for row in map(lambda r: (str(r[0]), r[1]), split_rows(train, val))]


def test_a_list_of_images_with_several_labels_is_selected_counted_and_sent_as_any_other(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(4)]
    folder = labeled_folder(written(tmp_path, "0.png,a|c\n1.png,\n2.png,b|c\n3.png,c\n", *names), "labels.csv")
    expected = [(0, 2), (), (1, 2), (2,)]
    assert [sample.indices for sample in folder.samples] == list(folder.samples.indices()) == expected
    assert all(sample.labels is not None and sample.label == -1 for sample in folder.samples)
    assert folder.counts.tolist() == [1, 1, 3]
    for chosen, rows in ((folder.samples[1:], [1, 2, 3]), (folder.samples.at(np.array([3, 0, 1])), [3, 0, 1])):
        assert list(pickle.loads(pickle.dumps(chosen)).indices()) == [expected[row] for row in rows]
        places, classes = chosen.members()
        assert sorted(zip(places.tolist(), classes.tolist(), strict=True)) == [
            (place, label) for place, row in enumerate(rows) for label in expected[row] or (-1,)
        ]
    assert ImageFolder(tmp_path, tuple(folder.samples), folder.classes).samples == folder.samples  # type: ignore[arg-type]


def test_shards_which_have_one_class_an_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").touch()
    with pytest.raises(DataError, match=r"x\.tar: shards found .*extensions\.labels.*a folder with labels\.csv"):
        Dataset(tmp_path / "x.tar", labels="labels.csv").labeled()
    folder = labeled_folder(written(tmp_path, "1.png,a|b", "1.png"), "labels.csv")
    with pytest.raises(RequestError, match=r"several labels per image \(extensions\.labels\), expected one class"):
        write_shards(folder, tmp_path, "x", 10**6)


def test_the_halves_for_temperature_and_thresholds_share_no_image(tmp_path: Path) -> None:
    rows = "\n".join(f"{n}.png,a" for n in range(9))
    folder = labeled_folder(written(tmp_path, rows, *(f"{n}.png" for n in range(9))), "labels.csv")
    first, second = halves(folder.samples)
    assert (len(first), len(second)) == (5, 4)
    assert {*first, *second} == {*folder.samples}
    assert halves(folder.samples) == (first, second)
