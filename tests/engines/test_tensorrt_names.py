"""Every name of TensorRT that our sources use exists in NVIDIA's own bindings of each version.

The names are read off the sources. The bindings are imported without TensorRT: a wheel of them holds pybind11 classes,
and loads over libraries that only define the few C functions that it links to.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import trt_cls
from trt_cls.files import cache_folder

ROOT = Path(trt_cls.__file__).parent
SOURCES = [
    ROOT / "engines" / "tensorrt" / "api.py",
    ROOT / "engines" / "inspection.py",
    ROOT / "export" / "tensorrt.py",
]
CLASSES = {
    "trt": "", "builder": "Builder", "parser": "OnnxParser",
    "config": "IBuilderConfig", "optimization": "IOptimizationProfile", "_runtime": "Runtime",
    "_engine": "ICudaEngine", "_context": "IExecutionContext", "runtime_config": "IRuntimeConfig",
    "get_error": "ParserError", "engine": "ICudaEngine", "create_engine_inspector": "EngineInspector",
}  # fmt: skip
"""How our sources call an object (or what returns it) → its class; "" is the module."""
WHEELS = [
    "tensorrt-cu12-bindings==10.13.0.35",
    "tensorrt-cu13-bindings==10.16.1.11",
    "tensorrt-cu13-bindings==11.4.0.106",
]
Names = dict[str, set[str]]
"""Class → names of its attributes; chains such as trt.BuilderFlag.TF32 count for trt and for BuilderFlag."""


class Uses(ast.NodeVisitor):
    """The names that a source uses everywhere, and those that it uses with TensorRT-RTX alone."""

    def __init__(self) -> None:
        self.everywhere: Names = defaultdict(set)
        self.rtx: Names = defaultdict(set)
        self._names = self.everywhere

    def visit_If(self, node: ast.If) -> None:
        outer = self._names
        if any(isinstance(part, ast.Constant) and part.value == "tensorrt-rtx" for part in ast.walk(node.test)):
            self._names = self.rtx
        for statement in node.body:
            self.visit(statement)
        self._names = outer
        for statement in [node.test, *node.orelse]:
            self.visit(statement)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = node.value.func if isinstance(node.value, ast.Call) else node.value
        name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
        if name in ("trt", "_trt"):
            self._names[""].add(node.attr)
        elif name in CLASSES:
            self._names[CLASSES[name]].add(node.attr)
        elif isinstance(owner, ast.Attribute) and getattr(owner.value, "id", getattr(owner.value, "attr", "")) in (
            "trt",
            "_trt",
        ):
            self._names[name].add(node.attr)
        self.generic_visit(node)


@pytest.fixture(scope="module")
def uses() -> Uses:
    found = Uses()
    for source in SOURCES:
        found.visit(ast.parse(source.read_text(encoding="utf-8")))
    return found


def missing(used: Names, there: dict[str, list[str]]) -> list[str]:
    return sorted(f"{owner}.{name}" for owner, names in used.items() for name in names - set(there.get(owner, [])))


DUMP = """
import json, sys, {module} as trt
classes = {{name: dir(value) for name, value in vars(trt).items() if isinstance(value, type)}}
print(json.dumps({{"": dir(trt), **classes}}), file=sys.stdout)
"""


def names_in(module: str, **environment: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", DUMP.format(module=module)],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names: dict[str, list[str]] = json.loads(done.stdout)
    return names


def test_the_names_are_read_off_the_sources(uses: Uses) -> None:
    """A variable of another name than in CLASSES would hide what is called on it."""
    assert set(CLASSES.values()) <= set(uses.everywhere) | set(uses.rtx)
    assert {"execute_async_v3", "set_input_shape", "set_tensor_address"} <= uses.everywhere["IExecutionContext"]
    assert "TF32" in uses.everywhere["BuilderFlag"]
    assert uses.rtx["IRuntimeConfig"] == {"cuda_graph_strategy"}


def test_tensorrt_rtx_has_every_name(uses: Uses) -> None:
    pytest.importorskip("tensorrt_rtx")
    there = names_in("tensorrt_rtx")
    assert missing(uses.everywhere, there) == []
    assert missing(uses.rtx, there) == []


def test_a_name_that_is_gone_is_found(uses: Uses) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert missing({"BuilderFlag": {"FP16"}, "IExecutionContext": {"execute_async"}}, names_in("tensorrt_rtx")) == [
        "BuilderFlag.FP16",
        "IExecutionContext.execute_async",
    ]


def bindings(requirement: str) -> Path:
    """The wheel of `requirement`: from the folder TRT_CLS_BINDINGS, or downloaded once into the user's cache."""
    name, version = requirement.replace("-", "_").split("==")
    folder = Path(os.environ.get("TRT_CLS_BINDINGS") or cache_folder() / "bindings")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    pattern = f"{name}-{version}-{python}-*{platform.machine()}.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--timeout", "5", "--retries", "0"]
        done = subprocess.run([*command, "-d", str(folder), requirement], capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.splitlines() or ["pip does not say why"])[-1]
            pytest.skip(f"TRT_CLS_BINDINGS names no folder with the wheel of {requirement}, and no download: {why}")
    return next(folder.glob(pattern))


def make_libraries(folder: Path, extension: Path) -> None:
    """The libraries that `extension` asks for, with the functions that it lacks; none of them is called on import."""
    for tool in ("gcc", "nm", "readelf"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed: the bindings' libraries can't be made")
    symbols = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    wanted = [line.split()[-1] for line in symbols.stdout.splitlines()]
    functions = [name for name in wanted if name.endswith(("_INTERNAL", "PluginRegistry", "Version", "Plugins"))]
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for library in needed(extension):
        target = folder / library
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", "-o", target, source], check=True
        )  # fmt: skip


def needed(extension: Path) -> Iterator[str]:
    dynamic = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    for line in dynamic.splitlines():
        if "(NEEDED)" in line and "libnv" in line:
            yield line.rpartition("[")[2].rstrip("]")


@pytest.mark.slow
@pytest.mark.parametrize("requirement", WHEELS)
def test_tensorrt_has_every_name(uses: Uses, requirement: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(bindings(requirement)) as wheel:
        wheel.extractall(tmp_path / "wheel")
    make_libraries(tmp_path, tmp_path / "wheel" / "tensorrt_bindings" / "tensorrt.so")
    there = names_in("tensorrt_bindings", LD_LIBRARY_PATH=str(tmp_path), PYTHONPATH=str(tmp_path / "wheel"))
    assert there["ICudaEngine"]
    assert missing(uses.everywhere, there) == []
