"""INT8 calibration: a histogram of the magnitudes of each activation, measured on images.

Does not know: which activations INT8 needs (`qdq`), and which range is made of a histogram (`models.int8_ranges`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from trt_cls.contract import INPUT
from trt_cls.engines.onnxruntime import session_of
from trt_cls.errors import ExportError
from trt_cls.models.int8_ranges import Histogram


def measure_magnitudes(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[NDArray[Any]]
) -> dict[str, Histogram]:
    """The magnitudes of `tensors` of a float32 `model` on `batches` of its input.

    Raises:
        ExportError: the network overflows on one of them.
    """
    inside = [name for name in tensors if name != INPUT]
    session = session_of(model, inside)
    found = {name: Histogram() for name in (INPUT, *inside)}
    for batch in batches:
        for name, values in zip(found, (batch, *session.run(inside, {INPUT: batch})), strict=True):
            if not np.isfinite(values).all():
                raise ExportError(
                    f"{name} of the network holds NaN or infinity on a calibration image; expected numbers; "
                    "look at the training, the network answers nothing of use"
                )
            found[name].add(values)
    return found
