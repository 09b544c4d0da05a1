"""Labels all images below a folder with Ray Data, on as many workers as asked for.

python docs/examples/ray_labels.py MODEL FOLDER OUT --workers 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ray

from trt_cls.preprocessing.image_file import EXTENSIONS
from trt_cls.ray import Labeler


def main() -> None:
    """Reads, labels and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    images = ray.data.read_binary_files(
        asked.folder, include_paths=True, file_extensions=[extension[1:] for extension in EXTENSIONS]
    )
    labels = images.map_batches(
        Labeler,
        fn_constructor_args=[str(asked.model.resolve())],
        fn_constructor_kwargs={"provider": "cpu", "threads": 1, "workers": 2},
        batch_size=32,
        num_cpus=0.5,  # two workers on two processors leave one to the tasks that read and write
        concurrency=asked.workers,
    )
    labels.sort("path").write_csv(asked.out)


if __name__ == "__main__":
    main()
