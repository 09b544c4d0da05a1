"""Counts what makes a training step wait for a GPU, without one: the meta device plays the GPU.

Operators that are computed within other operators, in C++, are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trt_cls.training.compute import Compute
from trt_cls.training.scaling import Scaler

READ_BY_THE_HOST = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"}
GPU = torch.device("meta")


class HostSyncs(TorchDispatchMode):
    """While entered, adds to `names` each operator for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func.overloadpacket.__name__, {**(kwargs or {})}
        on_gpu = any(value.is_meta for value in tree_leaves((args, given)) if isinstance(value, Tensor))
        if on_gpu and name in READ_BY_THE_HOST:
            self.names.append(name)
            return 1.0 if name == "_local_scalar_dense" else func(*args, **given)
        if on_gpu and name.startswith(("_fused_", "_amp_")):
            return None  # in place, and there is none for meta
        if name in ("_to_copy", "copy_"):
            target = args[0].device if name == "copy_" else torch.device(given.get("device") or args[0].device)
            source = args[1] if name == "copy_" else args[0]
            if (target == GPU) != source.is_meta:
                if not given.get("non_blocking", name == "copy_" and len(args) > 2 and args[2]):
                    self.names.append(f"{name} from {'GPU to CPU' if source.is_meta else 'CPU to GPU'}")
                if target != GPU:
                    return torch.ones(source.shape, dtype=given.get("dtype") or source.dtype)
        return func(*args, **given)


class MetaCompute(Compute):
    """A GPU that computes nothing; fp16 scales the loss and has no autocast."""

    def autocast(self) -> Any:
        return nullcontext()

    def scaler(self) -> Scaler:
        return Scaler("cuda", enabled=self.precision == "fp16")


def counted_on(patch: pytest.MonkeyPatch, device: str) -> None:
    """Lets torch's optimizers count their steps on a device, as on a GPU."""
    for optimizer in ("adam", "rmsprop"):
        module = import_module(f"torch.optim.{optimizer}")
        patch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: [device])


@contextmanager
def meta_gpu(precision: str = "bf16") -> Iterator[Compute]:
    """A context in which torch takes the meta device for a GPU with fused optimizers and a GradScaler."""
    with pytest.MonkeyPatch.context() as patch:
        for optimizer in ("sgd", "adam"):
            patch.setattr(import_module(f"torch.optim.{optimizer}"), "_device_dtype_check_for_fused", lambda *_: None)
        counted_on(patch, GPU.type)
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        yield MetaCompute((GPU,), precision, "")
