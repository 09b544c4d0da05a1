"""Labels in Ray Data are those of `infer`; the first test needs no Ray."""

from __future__ import annotations

import csv
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.tiny_models import CONTRACT, write_onnx
from trt_cls.cli import main
from trt_cls.contract import Conformal
from trt_cls.errors import RequestError
from trt_cls.ray import Labeler

ROOT = Path(__file__).resolve().parents[1]


def write_images(folder: Path, count: int) -> list[Path]:
    """Colored noise; one file is broken."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (9, 20, 3), dtype=np.uint8)).save(path)
    paths[5].write_bytes(b"broken")
    return paths


def rows_of_infer(model: Path, images: Path) -> list[list[str]]:
    assert main(["infer", "-m", str(model), "-i", str(images), "-r", str(images.parent), "--provider", "cpu"]) == 0
    with (images.parent / "result.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("conformal", [None, Conformal(0.9, 0.68)], ids=["a label", "sets"])
def test_rows_are_those_of_infer_and_a_broken_image_is_a_row(conformal: Conformal | None, tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx", replace(CONTRACT, conformal=conformal))
    paths = write_images(tmp_path / "images", 12)
    labeler = pickle.loads(pickle.dumps(Labeler))(str(model), "cpu", batch_size=4, threads=1, workers=2)
    content = np.array([path.read_bytes() for path in paths], object)
    found = labeler({"bytes": content, "path": np.array(list(map(str, paths)), object), "id": np.arange(len(paths))})
    assert found.keys() == {"path", "id", "label", "confidence", "error"}
    rows = [
        (path, label, f"{share:.6f}")
        for path, label, share in zip(found["path"], found["label"], found["confidence"], strict=True)
    ]
    expected = list(map(tuple, rows_of_infer(model, tmp_path / "images")))
    assert [row for row in rows if row[1]] == expected
    assert (len(expected) > 11) == (conformal is not None)
    assert [row for row in rows if not row[1]] == [(str(paths[5]), "", "nan")]
    assert found["error"][found["id"] == 5].tolist() == ["not an image of a known format"]
    assert set(found["error"][found["id"] != 5]) == {""}
    assert [str(paths[place]) for place in found["id"]] == found["path"].tolist()


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"workers": 0}, "workers 0"),
        ({"threads": -1}, "threads -1"),
        ({"executor": "gpu"}, 'executor "gpu" found, expected one of auto, cpu, cuda'),
    ],
)
def test_a_wrong_option_is_refused_before_the_model_is_opened(wrong: dict[str, Any], found: str) -> None:
    with pytest.raises(RequestError, match=found):
        Labeler("absent.onnx", "cpu", **wrong)


def test_a_cell_that_is_no_bytes_is_a_row_and_a_wrong_column_is_refused(tmp_path: Path) -> None:
    labeler = Labeler(str(write_onnx(tmp_path / "model.onnx")), "cpu", threads=1, workers=1)
    image = write_images(tmp_path / "images", 6)[0].read_bytes()
    cells: list[Any] = [None, image, "text", bytearray(image), 3, memoryview(image), np.bytes_(image), np.nan]
    content = np.empty(len(cells), object)
    content[:] = cells
    found = labeler({"bytes": content, "id": np.arange(len(cells))})
    assert found["id"].tolist() == list(range(len(cells)))
    kinds = [error.partition(" ")[0] for error in found["error"]]
    assert kinds == ["NoneType", "", "str", "", "int", "", "", "float"]
    assert [bool(label) for label in found["label"]] == [not kind for kind in kinds]
    assert labeler({"bytes": content[:1]})["label"].tolist() == [""]
    with pytest.raises(RequestError, match="columns found: image, path; expected bytes"):
        labeler({"image": content, "path": content})
    for name in ("label", "confidence", "error"):
        with pytest.raises(RequestError, match=f"columns found: {name}, which"):
            labeler({"bytes": content, name: content})


@pytest.mark.slow
def test_the_example_labels_on_a_local_cluster_of_two(tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    model, paths = write_onnx(tmp_path / "model.onnx"), write_images(tmp_path / "images", 60)
    subprocess.run(
        [sys.executable, ROOT / "docs/examples/ray_labels.py", model, tmp_path / "images", tmp_path / "out"],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        check=True,
        timeout=300,
    )
    found = []
    for table in sorted((tmp_path / "out").iterdir()):
        with table.open(newline="") as file:
            found += list(csv.DictReader(file))
    assert [row["path"] for row in found] == list(map(str, paths))
    labeled = [[row["path"], row["label"], f"{float(row['confidence']):.6f}"] for row in found if not row["error"]]
    assert labeled == rows_of_infer(model, tmp_path / "images")
