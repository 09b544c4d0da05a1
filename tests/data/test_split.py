from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trt_cls.data import folder as listing
from trt_cls.data.split import Dataset, split_rows
from trt_cls.errors import DataError

SIZES = {"bird": 2, "cat": 7, "dog": 10, "eel": 33, "fox": 101}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, count in SIZES.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "data" / name / f"{number}.png").touch()
    return tmp_path / "data"


def names(root: Path, part: str, share: float = 0.2, seed: int = 42) -> set[str]:
    samples = Dataset(root, part, share, seed).labeled().samples  # type: ignore[arg-type]
    return {sample.path.relative_to(root).as_posix() for sample in samples}


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_each_class_is_divided_within_one_image_and_both_parts_have_some(root: Path, share: float) -> None:
    train, val = names(root, "train", share), names(root, "val", share)
    assert not train & val
    assert len(train | val) == sum(SIZES.values())
    for name, count in SIZES.items():
        held_out = sum(path.startswith(name) for path in val)
        assert abs(held_out - share * count) <= 1
        assert 1 <= held_out <= count - 1


def test_place_and_order_of_the_files_do_not_matter_but_the_seed_does(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(root, "val")
    assert names(root, "val", seed=43) != before
    shutil.copytree(root, tmp_path / "copy")
    assert names(tmp_path / "copy", "val") == before
    monkeypatch.chdir(tmp_path)
    assert names(Path("data"), "val") == before
    images = listing.Walk.images
    monkeypatch.setattr(listing.Walk, "images", lambda self, top: reversed(list(images(self, top))))
    assert names(root, "val") == before


def test_an_added_image_moves_one_other_at_most_and_none_of_another_class(root: Path) -> None:
    before = names(root, "val")
    for number in range(30):
        (root / "fox" / f"new{number}.png").touch()
        after = names(root, "val")
        old = {path for path in after if f"new{number}." not in path}
        assert len(old ^ before) <= 1
        assert {path for path in old ^ before if not path.startswith("fox")} == set()
        before = after


def test_a_class_of_one_image_is_an_error(root: Path) -> None:
    (root / "bird" / "1.png").unlink()
    with pytest.raises(DataError, match="class bird has one image; expected two or more"):
        Dataset(root, "train", 0.2).labeled()
    assert len(Dataset(root).labeled().samples) == sum(SIZES.values()) - 1


def test_the_table_names_each_image_with_class_and_part(root: Path) -> None:
    rows = split_rows(*(Dataset(root, part, 0.5).labeled() for part in ("train", "val")))  # type: ignore[arg-type]
    assert rows[0] == ("path", "label", "part")
    assert [row[1] for row in rows[1:3]] == ["bird", "bird"]
    assert {row[2] for row in rows[1:3]} == {"train", "val"}
    assert len(rows) == sum(SIZES.values()) + 1
