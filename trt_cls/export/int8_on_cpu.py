"""Which engine runs an INT8 file on a CPU: OpenVINO, where it answers there as ONNX Runtime does.

ONNX Runtime computes Q/DQ in float, as the file says and on any processor alike, and slower than the file in FP32.
OpenVINO has integer kernels, and what those answer depends on the processor. So both run the first images, and OpenVINO
runs the rest where the two are within the bounds that an INT8 file is exported by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trt_cls.artefacts.sidecar import Parity
from trt_cls.contract import Preprocessing
from trt_cls.data.folder import Sample
from trt_cls.data.stream import WORKERS, stream
from trt_cls.engines.backends import open_engine
from trt_cls.engines.engine import Engine
from trt_cls.errors import ArtefactError, EngineError, MissingDependency
from trt_cls.export.parity import BOUNDS, Answers, figures

PROOF = 32
"""Images that both engines run. Where there are no more, ONNX Runtime runs them: a second engine takes time to open."""
EXACT = "onnxruntime-cpu"


def first_images(samples: Sequence[Sample], preprocessing: Preprocessing, *, more: bool = True) -> NDArray[Any] | None:
    """The first PROOF images, prepared; None where there are no others (if `more`), or none that can be decoded."""
    if more and len(samples) <= PROOF:
        return None
    (batch,) = stream(samples[:PROOF], preprocessing, batch_size=PROOF, workers=WORKERS)
    return batch.images if batch.samples else None


def open_fastest(
    model: Path, threads: int | None, images: Callable[[], NDArray[Any] | None], say: Callable[[str], None]
) -> Engine:
    """`open_engine` of an INT8 file with "auto", which on a CPU is OpenVINO where that is proved on `images`.

    `say` gets a line that names the engine and the reason. Without images it compares nothing and prints nothing.

    Raises:
        ArtefactError, DeviceError, MissingDependency: as `open_engine`.
    """
    exact = open_engine(model, "auto", threads)
    batch = images() if exact.backend == EXACT else None
    if batch is None:
        return exact
    expected = exact.infer(batch)
    try:
        fast = open_engine(model, "openvino", threads)
        answers = Answers(expected, fast.infer(batch))
    except (MissingDependency, ArtefactError, EngineError) as error:
        say(f"INT8 runs on {EXACT}, more slowly than FP32: {error}")
        return exact
    bounds = BOUNDS["int8"]
    count, agreement = len(batch), answers.agreement(bounds.tie)
    found = figures(Parity(count, agreement, answers.difference, f"the first {count} images"))
    # written so that a NaN is out of bounds
    if agreement >= bounds.top1_agreement and answers.difference <= bounds.max_abs_difference:
        exact.close()
        say(f"INT8 runs on {fast.backend}, which answers here as ONNX Runtime does: {found}")
        return fast
    fast.close()
    say(
        f"INT8 runs on {EXACT}, more slowly than FP32: OpenVINO answers otherwise on this processor: {found}; "
        f"expected at least {bounds.top1_agreement:.0%} and at most {bounds.max_abs_difference:g}"
    )
    return exact
