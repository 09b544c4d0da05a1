"""Labels in a pipeline of Ray Data: `images.map_batches(Labeler, fn_constructor_args=[MODEL], …)`.

Does not know: Ray, which calls it; see docs/examples/ray_labels.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from trt_cls.data.samples import Sample
from trt_cls.engines import open_engine
from trt_cls.engines.backends import Provider
from trt_cls.errors import RequestError
from trt_cls.evaluation.inference import Executor, answers
from trt_cls.evaluation.prediction_sets import decision
from trt_cls.text import listed

Column = NDArray[Any]
ENCODED = (bytes, bytearray, memoryview)
"""Types of an encoded image; numpy's own bytes are such, too."""
ANSWERS = ("label", "confidence", "error")
"""Columns of the answers."""


@dataclass(frozen=True)
class _Encoded(Sample):
    """The content of an image file; `label` is its place in the batch."""

    content: bytes = b""

    @property
    def source(self) -> bytes:  # type: ignore[override]  # what decodes an image takes its content, too
        return self.content


class Labeler:
    """A model that labels batches of encoded images, with the rows of `trt-cls infer`."""

    def __init__(
        self,
        model: str,
        provider: Provider = "auto",
        *,
        batch_size: int = 32,
        threads: int | None = None,
        workers: int = 8,
        executor: Executor = "auto",
    ) -> None:
        """`threads` of the CPU for the network, None: all; `workers`: threads that decode images.

        Raises:
            RequestError: a number is below 1, or `executor` is none; or as `open_engine`.
        """
        for name, value in {"batch_size": batch_size, "threads": threads, "workers": workers}.items():
            if value is not None and value < 1:
                raise RequestError(f"{name} {value} found, expected 1 or more; correct it in fn_constructor_kwargs")
        if executor not in get_args(Executor):
            raise RequestError(
                f'executor "{executor}" found, expected one of {", ".join(get_args(Executor))}; correct it in '
                "fn_constructor_kwargs"
            )
        self._engine = open_engine(Path(model), provider, threads)
        self._answer = partial(answers, self._engine, batch_size=batch_size, workers=workers, executor=executor)

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, Column]:
        """The columns of `batch` but `bytes`, and `label`, `confidence` (NaN without a label) and `error`.

        An image has a row for each label, as in result.csv; what is none has a row with the reason in `error`.

        Raises:
            EngineError: the run failed, or a probability is NaN or infinite.
            RequestError: there is no column `bytes`, or one with the name of an answer.
        """
        _check_columns(batch)
        images: list[_Encoded] = []
        rows: list[tuple[int, str, float, str]] = []
        for place, content in enumerate(batch["bytes"]):
            if isinstance(content, ENCODED):
                images.append(_Encoded(Path(), place, content=bytes(content)))
            else:
                rows.append((place, "", np.nan, f"{type(content).__name__} found, expected the bytes of an image file"))
        with closing(self._answer(images)) as batches:
            for found in batches:
                for sample, probabilities in zip(found.samples, found.probabilities, strict=True):
                    named = decision(probabilities, self._engine.contract).named or [("", np.nan)]
                    rows += [(sample.label, name, round(share, 6), "") for name, share in named]
                rows += [(image.label, "", np.nan, image.reason) for image in found.skipped]
        rows.sort(key=lambda row: row[0])
        places, labels, shares, errors = zip(*rows, strict=True) if rows else ((),) * 4
        others = {name: column[np.array(places, int)] for name, column in batch.items() if name != "bytes"}
        texts = {"label": np.array(labels, object), "error": np.array(errors, object)}
        return others | texts | {"confidence": np.array(shares, np.float64)}


def _check_columns(batch: Mapping[str, Column]) -> None:
    """Refuses a batch without images, and one whose columns would be lost."""
    if "bytes" not in batch:
        raise RequestError(
            f"columns found: {listed(batch) or 'none'}; expected bytes, the content of image files; read them with "
            "ray.data.read_binary_files, or rename the column"
        )
    if taken := [name for name in ANSWERS if name in batch]:
        raise RequestError(
            f"columns found: {listed(taken)}, which are columns of the answers; expected other names; rename them with "
            "rename_columns"
        )
