"""Labels in a pipeline of Ray Data: `images.map_batches(Labeler, fn_constructor_args=[MODEL], …)`.

Does not know: Ray, which calls it; see docs/examples/ray_labels.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_cls.data.samples import Sample
from trt_cls.engines import open_engine
from trt_cls.engines.backends import Provider
from trt_cls.evaluation.answers import Executor, answers
from trt_cls.evaluation.decisions import decision

Column = NDArray[Any]


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
        """`threads` of the CPU for the network, None: all; `workers`: threads that decode images."""
        self._engine = open_engine(Path(model), provider, threads)
        self._answer = partial(answers, self._engine, batch_size=batch_size, workers=workers, executor=executor)

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, Column]:
        """The columns of `batch` but `bytes`, and `label`, `confidence` (NaN without a label) and `error`.

        An image has a row for each label, as in result.csv; a broken one has a row with the reason in `error`.

        Raises:
            EngineError: the run failed, or a probability is NaN or infinite.
        """
        images = [_Encoded(Path(), place, content=bytes(content)) for place, content in enumerate(batch["bytes"])]
        rows: list[tuple[int, str, float, str]] = []
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
