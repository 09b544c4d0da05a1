"""The preprocessing kernel on the CPU: builds it with g++, once for each state of its sources, and runs it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from trt_cls.contract import Preprocessing
from trt_cls.data.transforms import KernelImage, bundle
from trt_cls.preprocessing.packing import BLOCK, Bundle, grid, kernel_name, pack, scalars

HERE = Path(__file__).parent
KERNEL = HERE.parents[1] / "kernels" / "preprocess.cu"
WRAPPER = HERE / "preprocess_on_cpu.cpp"
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
FLAGS += ["-U_FORTIFY_SOURCE"]  # some systems set it, and it aborts on jumps between stacks


@cache
def build() -> ctypes.CDLL:
    """The kernels as C functions; skips where there is no g++."""
    return compiled(WRAPPER, FLAGS, includes=(KERNEL, HERE / "cuda_on_cpu.h"))


def compiled(source: Path, flags: Sequence[str], includes: Sequence[Path] = ()) -> ctypes.CDLL:
    """A library of `source`, compiled once for each state of the files and flags; skips where there is no g++.

    `TRT_CLS_KERNEL_FLAGS` is passed to the compiler too.
    """
    if not (compiler := shutil.which("g++")):
        pytest.skip("g++ is not installed: kernels can't be built for the CPU")
    flags = [*flags, *os.environ.get("TRT_CLS_KERNEL_FLAGS", "").split()]
    content = b"".join(path.read_bytes() for path in (source, *includes))
    key = hashlib.sha256(content + repr(flags).encode()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"trt-cls-kernels-{os.getuid()}" / f"{key}.so"
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        beside = built.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *flags, "-shared", "-fPIC", "-o", beside, source], check=True)
        beside.rename(built)
    return ctypes.CDLL(str(built))


def launch(name: str, blocks: Sequence[int], threads: Sequence[int], arguments: Sequence[int]) -> None:
    """Runs the kernel `name`; its pointers are given as addresses."""
    shape = ctypes.c_uint * 3
    pointer, number = ctypes.c_void_p, ctypes.c_int
    types = [pointer] * (5 if name.startswith("augment") else 4) + [number] * 3 + [pointer]
    values = [kind(value) for kind, value in zip(types, arguments, strict=True)]
    build()[f"launch_{name}"](shape(*blocks), shape(*threads), *values)


def preprocess(images: Sequence[np.ndarray], preprocessing: Preprocessing) -> np.ndarray:
    """The network's input [n,C,H,W] for uint8 images [height,width,channels], made by the kernel."""
    made = Bundle(pack(images, preprocessing), preprocessing)
    output = np.full((len(images), *preprocessing.input_shape), np.nan, np.float32)
    _launch(made, kernel_name(preprocessing), preprocessing, output)
    return output


def augment(parts: Sequence[KernelImage], preprocessing: Preprocessing) -> np.ndarray:
    """The network's input [n,C,H,W] for planned images, made by the kernel."""
    output = np.full((len(parts), *preprocessing.input_shape), np.nan, np.float32)
    _launch(bundle(parts, preprocessing), kernel_name(preprocessing, "augment"), preprocessing, output)
    return output


class Augmentation:
    """What `cuda.CudaAugmentation` is, with addresses of this process's memory; done at once."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self.shape = preprocessing.input_shape
        self.batches: list[int] = []

    def launch(self, bundle: int, starts: Sequence[int], images: int, output: int) -> None:
        name = kernel_name(self._preprocessing, "augment")
        arguments = *(bundle + start for start in starts), *scalars(self._preprocessing), output
        launch(name, grid(self._preprocessing, images), BLOCK, arguments)
        self.batches.append(images)

    def close(self) -> None:
        pass


def _launch(made: Bundle, name: str, preprocessing: Preprocessing, output: np.ndarray) -> None:
    # Its pixels end where the memory does, so that AddressSanitizer sees who reads beyond.
    content = np.empty(made.size, np.uint8)
    made.write(content)
    addresses = (content.ctypes.data + start for start in made.starts)
    launch(name, grid(preprocessing, len(output)), BLOCK, (*addresses, *scalars(preprocessing), output.ctypes.data))
