"""Builds what an index gets, the sdist and a wheel for each processor, into `dist/`, and checks them.

zig's clang compiles for both processors on any machine, against the symbols of an old glibc. Needs uv, ziglang,
auditwheel and twine, which the extra `dev` has.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
PROCESSORS = ("x86_64", "aarch64")
GLIBC = "2.28"
"""That of RHEL 8, Debian 10 and Ubuntu 20.04."""
RUN_TIME = ["-nostdlib++", "-s"]
"""Neither a C++ runtime nor debug symbols."""


def compile_library(processor: str, output: Path) -> None:
    """The C++ library for a processor, by the flags with which an installation compiles it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    (library,) = settings
    target = ["-target", f"{processor}-linux-gnu.{GLIBC}"]
    flags = [*library["extra-compile-args"], *RUN_TIME, "-shared", "-fPIC"]
    command = [sys.executable, "-m", "ziglang", "c++", *target, *flags, *library["sources"], "-o", str(output)]
    subprocess.run(command, cwd=ROOT, check=True)


def build_wheel(processor: str, folder: Path) -> Path:
    """The wheel `py3-none-manylinux_2_28` of a processor."""
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{processor}"
    with tempfile.TemporaryDirectory() as place:
        compile_library(processor, Path(place) / "_host.so")
        environment = os.environ | {"TRT_CLS_PREBUILT_LIBRARY": f"{place}/_host.so"}
        # In build/ an earlier library of the other processor may lie.
        build = [
            "--config-setting=--global-option=build",
            f"--config-setting=--global-option=--build-base={place}/build",
        ]
        option = f"--config-setting=--build-option=--plat-name={tag}"
        uv("--wheel", *build, option, folder=folder, environment=environment)
    (wheel,) = folder.glob(f"trt_cls-*-py3-none-{tag}.whl")
    return wheel


def uv(*arguments: str, folder: Path, environment: dict[str, str] | None = None) -> None:
    """One build of uv's, in an environment that has only what pyproject.toml requires for it."""
    command = [sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", str(folder), *arguments, str(ROOT)]
    subprocess.run(command, env=environment, check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--processor", action="append", choices=PROCESSORS, help="default: both, and the sdist")
    arguments = parser.parse_args()
    folder: Path = arguments.output.resolve()
    wheels = [build_wheel(processor, folder) for processor in arguments.processor or PROCESSORS]
    if not arguments.processor:
        uv("--sdist", folder=folder)
    for wheel in wheels:
        subprocess.run([sys.executable, "-m", "auditwheel", "show", str(wheel)], check=True)
    files = [*wheels, *(folder.glob("*.tar.gz") if not arguments.processor else ())]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], check=True)


if __name__ == "__main__":
    main()
