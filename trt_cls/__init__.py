"""From one spec file to a TensorRT engine that is proved to answer as the trained network does."""

from __future__ import annotations

from trt_cls.version import __version__

# Not typing's: `python -m trt_cls` runs this before the current folder, where a `typing.py` may lie, leaves sys.path.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from trt_cls.engines.backends import Provider
    from trt_cls.engines.classifier import Classifier

__all__ = ["__version__", "load"]


def load(artefact: str | Path, provider: Provider = "auto") -> Classifier:
    """Opens a `.safetensors`, `.onnx` or `.engine` file for prediction; see `Classifier`."""
    from trt_cls.engines.classifier import load_classifier

    return load_classifier(artefact, provider)
