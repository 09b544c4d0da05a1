"""Labels images with a Triton server: python client.py IMAGE_OR_FOLDER [--url HOST:PORT].

Prints path,label,confidence for each image, or each label that it has, as `trt-cls infer` writes them. The pixels are
made by trt_cls from the contract that the server hands out with the model's configuration: they are those of the
training to the bit.

    pip install trt-cls "tritonclient[http]"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype  # type: ignore[import-untyped,import-not-found,unused-ignore]

from trt_cls.artefacts.decoding import contract_from_json
from trt_cls.contract import INPUT, METADATA_KEY, OUTPUT
from trt_cls.data.folder import Sample, list_images
from trt_cls.data.stream import stream
from trt_cls.evaluation.prediction_sets import decision
from trt_cls.text import FOREIGN, csv_row, printable


def label(images: list[Path], server: Any, model: str, batch_size: int) -> Iterator[tuple[Path, str, float | None]]:
    """Path, class and its probability for each class that is named, or an empty name and None where none is.

    Images that can't be decoded go to stderr.
    """
    config = server.get_model_config(model)
    contract = contract_from_json(config["parameters"][METADATA_KEY]["string_value"], f"the configuration of {model}")
    batch_size = min(batch_size, config["max_batch_size"])
    samples = [Sample(path) for path in images]
    for batch in stream(samples, contract.preprocessing, batch_size=batch_size, workers=4):
        for skipped in batch.skipped:
            print(printable(f"{skipped.path}: skipped: {skipped.reason}"), file=sys.stderr)
        if batch.samples:
            for sample, row in zip(batch.samples, probabilities(batch.images, server, model), strict=True):
                named = decision(row, contract).named or (("", None),)
                yield from ((sample.path, *found) for found in named)


def probabilities(images: NDArray[Any], server: Any, model: str) -> NDArray[np.float32]:
    """What the server answers, [n, classes], for preprocessed images: float32 [n, C, H, W], or uint8 [n, H, W, C]."""
    request = triton.InferInput(INPUT, list(images.shape), np_to_triton_dtype(images.dtype))
    request.set_data_from_numpy(images, binary_data=True)
    answer = server.infer(model, [request], outputs=[triton.InferRequestedOutput(OUTPUT, binary_data=True)])
    rows: NDArray[np.float32] = answer.as_numpy(OUTPUT)
    return rows


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Labels images with a Triton server.")
    parser.add_argument("images", type=Path, help="an image, or a folder of images")
    parser.add_argument("--url", default="localhost:8000", help="host and port of the server's HTTP service")
    parser.add_argument("--model", default=Path(__file__).resolve().parent.name, help="its name (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images a request (default: %(default)s)")
    given = parser.parse_args()
    with triton.InferenceServerClient(given.url) as server:
        for path, name, confidence in label(list_images(given.images), server, given.model, given.batch_size):
            shown = "" if confidence is None else f"{confidence:.6f}"
            sys.stdout.buffer.write(csv_row((path, name, shown)).encode("utf-8", FOREIGN))


if __name__ == "__main__":
    main()
