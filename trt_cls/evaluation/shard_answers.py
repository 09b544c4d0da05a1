"""The probabilities for the images of shards, each exactly once, and the predictions that they make together.

OUT/STEM.safetensors has `probabilities` [images, classes] and `crc32`, which binds each row to the bytes of its image;
an image that was skipped has its place and reason in the header. Does not know: true labels and metrics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from trt_cls.artefacts.sidecar import file_sha256
from trt_cls.contract import Contract
from trt_cls.data.samples import Sample, Samples, Skipped
from trt_cls.data.shards import checksums
from trt_cls.errors import DataError, TrtClsError, one_line
from trt_cls.evaluation.evaluate import UNTIMED, Predictions
from trt_cls.evaluation.shard_labels import Answer, Labeling, places_in
from trt_cls.files import atomic
from trt_cls.store_cache import held
from trt_cls.text import listed

SLACK = 1e-3
"""Of float16 softmaxes above 1."""


@dataclass(frozen=True)
class ShardAnswers(Labeling):
    """The answers of one model to shards; shards are answered and left out as `Labeling` does."""

    tta: str = ""
    """The value of --tta."""

    @property
    def options(self) -> dict[str, str | int]:
        """What the outputs depend on, beside the model and the images."""
        return super().options | {"tta": self.tta}

    def write(
        self,
        output: Path,
        answer: Answer,
        contract: Contract,
        shard: Path,
        samples: Samples,
        progress: Callable[[int], None],
    ) -> tuple[int, int]:
        """Writes the probabilities of a shard's images; returns the numbers of rows and of skipped images."""
        place_of, skipped = places_in(shard, samples), dict[int, str]()
        probabilities = np.zeros((len(samples), len(contract.classes)), np.float32)
        with closing(answer(samples)) as batches:
            for batch in batches:
                probabilities[[place_of[sample.path] for sample in batch.samples]] = batch.probabilities
                skipped |= {place_of[image.path]: image.reason for image in batch.skipped}
                progress(len(batch.samples) + len(batch.skipped))
        header = json.dumps({"backend": self.backend, "skipped": skipped})
        with atomic(output) as beside:  # a second entry of the header would come before or after the first, at random
            tensors = {"probabilities": probabilities, "crc32": checksums(samples)}
            beside.write_bytes(save(tensors, {"answers": header}))
        return len(samples), len(skipped)

    def merged(self, shards: Mapping[Path, Samples], classes: int) -> tuple[Predictions, str]:
        """The predictions for the images of all shards, in order, and the backend that made them.

        Raises:
            ArtefactError, RequestError: answers are of another model, or made with other options.
            DataError: no image was decoded.
            TrtClsError: answers are missing, changed, or to other images.
        """
        kept: list[Sample] = []
        rows, lost, faults, backends = [], list[Skipped](), [], set()
        for shard, samples in shards.items():
            if not self.is_done(shard):
                faults.append(f"{shard.name} missing")
                continue
            try:
                probabilities, reasons, backend = self._read(shard, samples, classes)
            except Exception as error:  # safetensors, numpy and json have errors of their own
                faults.append(f"{shard.name} can't be used ({one_line(error)[:200]}; remove {shard.stem}.json)")
                continue
            decoded = np.array([place not in reasons for place in range(len(samples))])
            kept += compress(samples, decoded)
            rows.append(probabilities[decoded])
            lost += [Skipped(samples[place].path, reason, samples[place].label) for place, reason in reasons.items()]
            backends.add(backend)
        if faults:
            found = f"{len(faults)} of {len(shards)} shards are not answered once: {listed(faults, 20)}"
            raise TrtClsError(f"{self.out}: {found}; expected all; start evaluate -o again")
        if not kept:
            raise DataError(f"{self.out}: none of {len(lost)} images was decoded, the first is {lost[0].path}")
        return Predictions(tuple(kept), np.concatenate(rows), tuple(lost), UNTIMED), ", ".join(sorted(backends))

    def _read(self, shard: Path, samples: Samples, classes: int) -> tuple[NDArray[np.float32], dict[int, str], str]:
        """The probabilities, the reasons of skipped images by place, and the backend.

        Raises:
            ValueError: they are not to these images.
        """
        made = self.made(shard)
        with held(self.out / f"{shard.stem}.{self.form}") as output:
            if file_sha256(output) != made.output_sha256:
                raise ValueError("it was changed since it was written")
            with safe_open(output, framework="numpy") as file:
                header = json.loads(file.metadata()["answers"])
                probabilities, crc32 = file.get_tensor("probabilities"), file.get_tensor("crc32")
        if not np.array_equal(crc32, checksums(samples)):
            raise ValueError(f"{len(crc32)} images found, which are not the {len(samples)} of the shard")
        found = f"{probabilities.dtype} {list(probabilities.shape)}"
        if found != (wanted := f"float32 {[len(samples), classes]}"):
            raise ValueError(f"{found} found, expected {wanted}")
        if not ((probabilities >= 0) & (probabilities <= 1 + SLACK)).all():
            raise ValueError("numbers below 0 or above 1 found, expected probabilities")
        reasons = {int(place): str(reason) for place, reason in header["skipped"].items()}
        if not all(0 <= place < len(samples) for place in reasons) or made.skipped != len(reasons):
            raise ValueError(f"{len(reasons)} images were skipped there, expected {made.skipped}")
        return probabilities, reasons, str(header["backend"])
