"""Broken images: each counts once for its classes, whichever process found it and however training was resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trt_cls.data.samples import ImageFolder, Sample, Skipped, of_samples
from trt_cls.errors import DataError
from trt_cls.training.validation import BrokenImages

ROOT = Path("root")


class Recorder:
    """Processes that keep what one of them sends to the others."""

    sent: Any = None

    def gather(self, own: Any) -> list[Any]:
        self.sent = own
        return [own]


def lost(sample: Sample) -> Skipped:
    return Skipped(sample.path, "broken", sample.label, sample.labels)


@pytest.mark.parametrize("several", [False, True])
def test_a_broken_image_counts_for_its_classes_in_other_processes_and_after_a_restart(several: bool) -> None:
    paths = [ROOT / f"{number}.png" for number in range(3)]
    single = [Sample(path, label) for path, label in zip(paths, (0, 0, 1), strict=True)]
    multi = [Sample(path, labels=labels) for path, labels in zip(paths, ((0, 1), (0,), ()), strict=True)]
    folder = ImageFolder(ROOT, of_samples(ROOT, multi if several else single), ("a", "b"))
    assert folder.counts.tolist() == [2, 1]
    here, there, resumed, processes = BrokenImages(folder), BrokenImages(folder), BrokenImages(folder), Recorder()
    here.add([lost(folder.samples[1])])
    here.share(processes)  # type: ignore[arg-type]
    there.add(processes.sent)
    resumed.restore(here.state())
    for broken in (here, there, resumed):
        broken.add([lost(folder.samples[1])])
        assert [image.path for image in broken.images] == [paths[1]]
        with pytest.raises(DataError, match=r"class 'a' has no image that can be read \(the last: root/0\.png: broken"):
            broken.add([lost(folder.samples[0])])
