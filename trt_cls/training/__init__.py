"""Training: from a spec and two folders of images to checkpoints; `train` is the whole of it.

PyTorch is imported with the first use of `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_cls.training.loop import TrainingResult
    from trt_cls.training.run import train

__all__ = ["TrainingResult", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from trt_cls.training import run

    return getattr(run, name)
