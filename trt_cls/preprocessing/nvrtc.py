"""Compiles the CUDA kernels with NVRTC, NVIDIA's run-time compiler: one library, without a host compiler or a GPU.

Torch, the `nvidia-cuda-nvrtc` wheel, the CUDA Toolkit and JetPack all bring it. Does not know: what the kernels do.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from pathlib import Path

from trt_cls.errors import DeviceError, one_line
from trt_cls.files import atomic

KERNEL = Path(__file__).with_name("preprocess.cu")
INSTALL = "install one with pip install nvidia-cuda-nvrtc, or the CUDA Toolkit, or preprocess on the CPU"


def compiled_kernels(architecture: str, folder: Path) -> Path:
    """The kernels for `architecture` ("sm_90"), compiled into `folder` unless they are there.

    Without NVRTC, as on a machine that the folder was copied to, what any version made of this source will do.

    Raises:
        DeviceError: there is no NVRTC, or it does not know the architecture; `folder` can't be written.
    """
    name = f"preprocess-{architecture}-{hashlib.sha256(KERNEL.read_bytes()).hexdigest()[:12]}"
    library = nvrtc()
    compiler = version(library) if library else "*"
    if made := sorted(folder.glob(f"{name}-{compiler}.cubin")):
        return made[0]
    content = compile_source(KERNEL.read_bytes(), KERNEL.name, architecture)
    cubin = folder / f"{name}-{compiler}.cubin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(cubin) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise DeviceError(
            f"the compiled kernel can't be kept in {folder} ({one_line(error)}); expected a folder that can be written "
            "and has room; set XDG_CACHE_HOME to one, or preprocess on the CPU"
        ) from error
    return cubin


@cache
def nvrtc() -> ctypes.CDLL | None:
    """The library; None where it is not installed."""
    try:
        from cuda import pathfinder
    except ImportError:
        return None
    try:
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path)
    except (pathfinder.DynamicLibNotFoundError, OSError):
        return None


def version(library: ctypes.CDLL) -> str:
    """As in "13.0"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_source(source: bytes, name: str, architecture: str) -> bytes:
    """The machine code of a CUDA source for `architecture`, an ELF file (cubin).

    Raises:
        DeviceError: there is no NVRTC, or it does not know the architecture.
    """
    library = nvrtc()
    if library is None:
        raise DeviceError(f"CUDA kernels are compiled at first use, and no NVRTC library was found; {INSTALL}")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = (ctypes.c_char_p * 2)(f"--gpu-architecture={architecture}".encode(), b"--std=c++17")
    failed = library.nvrtcCreateProgram(
        ctypes.byref(program), source, name.encode(), 0, None, None
    ) or library.nvrtcCompileProgram(program, len(options), options)
    try:
        if failed:
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value + 1)
            library.nvrtcGetProgramLog(program, log)
            library.nvrtcGetErrorString.restype = ctypes.c_char_p
            reason = " ".join((log.value or library.nvrtcGetErrorString(failed)).decode(errors="replace").split())
            raise DeviceError(
                f"NVRTC {version(library)} does not compile {name} for {architecture}: {reason}; expected one "
                f"that knows this GPU, 13.0 does from sm_75 on; {INSTALL}"
            )
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, cubin)
        return cubin.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
