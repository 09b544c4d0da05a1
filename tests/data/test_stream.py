from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.pixel_reference import preprocess, preprocessing_of
from trt_cls.data import stream as stream_module
from trt_cls.data.folder import Sample
from trt_cls.data.stream import Batch, Skipped, stream
from trt_cls.preprocessing.images import decode, read
from trt_cls.preprocessing.pillow import Pixels

PREPROCESSING = preprocessing_of("rgb", "bilinear", "center", "24x16", "caffe")
BROKEN = (3, 4, 5, 9)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Eleven images in batches of 3; the second batch is broken throughout, the last partial and with a loss."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(11):
        path = tmp_path / f"{index}.png"
        Image.fromarray(generator.integers(0, 256, (30, 20 + index, 3), dtype=np.uint8)).save(path)
        if index in BROKEN:
            path.write_bytes(path.read_bytes()[:100])
        made.append(Sample(path, index % 4))
    return made


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_batches_come_in_order_without_the_broken(samples: list[Sample], workers: int) -> None:
    batches = list(stream(samples, PREPROCESSING, batch_size=3, workers=workers))
    assert [len(batch.images) for batch in batches] == [3, 0, 3, 1]
    for number, batch in enumerate(batches):
        group = range(3 * number, min(3 * number + 3, 11))
        kept = tuple(samples[index] for index in group if index not in BROKEN)
        assert batch.samples == kept
        assert batch.images.dtype == np.float32
        assert batch.images.shape[1:] == (3, 24, 16)
        for image, sample in zip(batch.images, kept, strict=True):
            np.testing.assert_array_equal(image, preprocess(decode(sample.path, 3), PREPROCESSING))
        assert [skipped.path for skipped in batch.skipped] == [samples[i].path for i in group if i in BROKEN]
        assert all(skipped.reason.startswith("broken image (") for skipped in batch.skipped)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_images_are_no_batches(workers: int) -> None:
    assert list(stream([], PREPROCESSING, batch_size=3, workers=workers)) == []


def test_images_too_thin_for_the_crop_are_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (1, 30_000)).save(tmp_path / "thin.png")
    (batch,) = stream([Sample(tmp_path / "thin.png")], preprocessing_of("rgb", "bilinear", "center", "96x96"),
                      batch_size=1, workers=1)  # fmt: skip
    assert isinstance(batch, Batch)
    assert batch.skipped[0].reason.startswith("1×30000 pixels are too long and thin")


@pytest.mark.parametrize("workers", [0, 3])
def test_the_look_ahead_is_bounded(samples: list[Sample], workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []

    def watched(path: Path, channels: int) -> Pixels:
        started.append(path)
        return read(path, channels)

    monkeypatch.setattr(stream_module, "read", watched)
    batches = stream(samples * 20, PREPROCESSING, batch_size=3, workers=workers)
    for handed_out in range(1, 20):
        next(batches)
        assert len(started) <= 3 * (handed_out + stream_module.BATCHES_AHEAD)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trt-cls-images")]


def test_an_error_that_is_not_the_images_fault_is_raised(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, channels: int) -> Pixels:
        raise ZeroDivisionError

    monkeypatch.setattr(stream_module, "read", failing)
    with pytest.raises(ZeroDivisionError):
        list(stream(samples, PREPROCESSING, batch_size=3, workers=2))


def test_skipped_reasons_do_not_repeat_the_path(samples: list[Sample]) -> None:
    (batch,) = stream(samples[3:4], PREPROCESSING, batch_size=3, workers=0)
    (skipped,) = batch.skipped
    assert isinstance(skipped, Skipped)
    assert str(skipped.path) not in skipped.reason


def test_no_torch_is_imported() -> None:
    modules = "trt_cls.data.stream, trt_cls.data.augmentation, trt_cls.preprocessing.description"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
