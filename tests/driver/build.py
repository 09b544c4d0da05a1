"""Builds the stand-in driver and the real pycuda over it, once for each state of what they are made of.

Takes g++, CUDA's headers (a CUDA Toolkit with nvcc) and, at the first time, six minutes and the package index, which
has pycuda's sources only. Does not know: what runs over them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYCUDA = "2026.1"
SOURCES = [HERE / name for name in ("libcuda.cpp", "state.h", "cubin.h")]
FLAGS = ["-std=c++17", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"]
SONAME = "libcuda.so.1"


class Missing(Exception):
    """What is not installed here, and is needed."""


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trt-cls-driver"


def toolkit() -> Path:
    """The root of a CUDA Toolkit.

    Raises:
        Missing: there is none, or no C++ compiler.
    """
    if not shutil.which("g++"):
        raise Missing("g++ is not installed")
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_ROOT"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places += [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    for place in filter(None, places):
        if (Path(place) / "include" / "cuda.h").exists() and (Path(place) / "bin" / "nvcc").exists():
            return Path(place)
    raise Missing("no CUDA Toolkit with nvcc and cuda.h was found; set CUDA_ROOT")


def build() -> tuple[Path, Path]:
    """The folders that hold libcuda.so.1 and pycuda.

    Raises:
        Missing: see `toolkit`.
    """
    root = toolkit()
    python = "cp{}{}".format(*sys.version_info[:2])
    place = cache() / f"pycuda-{PYCUDA}-{python}-{_digest([root / 'include' / 'cuda.h'])}"
    driver = place / f"driver-{_digest(SOURCES)}"
    if not (driver / SONAME).exists():
        driver.mkdir(parents=True, exist_ok=True)
        run("g++", *FLAGS, "-isystem", root / "include", "-c", "-o", driver / "driver.o", SOURCES[0])
        link(driver / "driver.o", driver / "libcuda.so")  # what pycuda is linked against
        if not list(place.glob("site/pycuda/_driver*.so")):
            build_pycuda(root, place, driver)
        link(driver / "driver.o", stubs(place, driver), driver / SONAME)
    return driver, place / "site"


def build_pycuda(root: Path, place: Path, driver: Path) -> None:
    print(f"building pycuda {PYCUDA} into {place}: some six minutes, once", flush=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source, beside = place / "source", place / f"site.{os.getpid()}"
    asked = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", f"pycuda=={PYCUDA}"]
    run(*pip, "download", "--dest", place, *asked)
    (archive,) = place.glob("pycuda-*.tar.gz")
    shutil.rmtree(source, ignore_errors=True)
    shutil.unpack_archive(archive, source, filter="data")
    (unpacked,) = source.iterdir()
    settings = ["CUDA_ENABLE_CURAND = False", f"CUDA_ROOT = {str(root)!r}", f"CUDADRV_LIB_DIR = [{str(driver)!r}]"]
    (unpacked / "siteconf.py").write_text("\n".join(settings) + "\n")
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"  # an nvcc that is a script leads pycuda astray
    run(*pip, "install", "--no-build-isolation", "--target", beside, unpacked, environment={"PATH": path})
    beside.rename(place / "site")
    shutil.rmtree(source)


def stubs(place: Path, driver: Path) -> Path:
    """A source of the functions that pycuda is linked with and the driver has not: they say so when they are called."""
    (extension,) = place.glob("site/pycuda/_driver*.so")
    wanted = {name for name in symbols("--undefined-only", extension) if name.startswith("cu") and name[2].isupper()}
    lines = ["#include <cstdio>"]
    for name in sorted(wanted - symbols("--defined-only", driver / "libcuda.so")):
        said = f'std::fputs("driver: violation: {name} is not there\\n", stderr)'
        lines.append(f'extern "C" int {name}() {{ {said}; return 801; }}  // CUDA_ERROR_NOT_SUPPORTED')
    (driver / "stubs.cpp").write_text("\n".join(lines) + "\n")
    return driver / "stubs.cpp"


def symbols(which: str, library: Path) -> set[str]:
    said = subprocess.run(["nm", "-D", which, library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in said.splitlines()}


def link(*files: Path) -> None:
    *sources, library = files
    beside = library.with_suffix(f".{os.getpid()}")
    run("g++", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", "-o", beside, *sources, "-ldl", "-lpthread")
    beside.rename(library)


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], check=True, env=os.environ | (environment or {}))


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


if __name__ == "__main__":
    print(*build(), sep="\n")
