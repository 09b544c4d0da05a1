"""Holds what `export` writes against the model that it was made from, on the same images."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from trt_cls.contract import Precision
from trt_cls.engines.engine import INPUT, OUTPUT, Provider, infer_fed, open_engine
from trt_cls.engines.onnxruntime import session_of
from trt_cls.engines.torch import TorchEngine
from trt_cls.errors import ExportError
from trt_cls.export.images import Images
from trt_cls.export.onnx_file import contract_of
from trt_cls.export.parity import Checked, Infer, checked


@dataclass(frozen=True)
class Check:
    """Holds artefacts against one model on the same images."""

    model: Path
    precision: Precision
    images: Images

    def __call__(self, artefact: Path, provider: Provider) -> Checked:
        """The parity of `artefact`.

        Raises:
            ExportError: it is out of bounds.
            MissingDependency, DeviceError: this machine can't run it.
        """
        with closing(open_engine(artefact, provider)) as opened:
            return self._held(opened.infer)

    def explained(self, refusal: ExportError, plain: onnx.ModelProto) -> ExportError:
        """`refusal`, or, where `plain` in float32 was converted, what was wrong before with that."""
        if self.precision == "fp32" or contract_of(plain, "the ONNX graph").precision != "fp32":
            return refusal
        described = replace(self.images.preprocessing, embedded=False)
        before = Check(self.model, "fp32", replace(self.images, preprocessing=described))
        session = session_of(plain)
        try:
            before._held(lambda batch: session.run([OUTPUT], {INPUT: batch})[0])
        except ExportError as earlier:
            return ExportError(f"before the conversion to {self.precision}: {earlier}")
        return refusal

    def _held(self, infer: Infer) -> Checked:
        fed = self.images.preprocessing
        with ExitStack() as opened:
            reference = opened.enter_context(closing(open_engine(self.model, "cpu")))

            def exact() -> Infer:
                assert isinstance(reference, TorchEngine)
                return infer_fed(opened.enter_context(closing(reference.in_float64())), fed)

            known = exact if isinstance(reference, TorchEngine) else None
            return checked(infer, infer_fed(reference, fed), self.images, self.precision, known)
