from __future__ import annotations

from pathlib import Path

import pytest

from trt_cls.doctor.facts import Jetson, jetson

RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
)
MODES = "# modes\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=30W >\n"


def board(root: Path, **files: str) -> Path:
    """A file system with `files`, whose names have __ for /."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_board_release_and_power_mode_are_read(tmp_path: Path) -> None:
    root = board(tmp_path, **{
        "proc__device-tree__model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
        "etc__nv_tegra_release": RELEASE, "etc__nvpmodel.conf": MODES, "var__lib__nvpmodel__status": "pmode:0002",
    })  # fmt: skip
    found = jetson(root)
    assert found == Jetson("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "36.4.3", "30W")
    assert found.jetpack == 6


@pytest.mark.parametrize(("release", "jetpack"), [("R35", 5), ("R36", 6), ("R38", 7), ("R99", None)])
def test_the_jetpack_follows_from_the_release(tmp_path: Path, release: str, jetpack: int | None) -> None:
    found = jetson(board(tmp_path, etc__nv_tegra_release=RELEASE.replace("R36", release)))
    assert found is not None
    assert (found.model, found.jetpack, found.power_mode) == ("NVIDIA Jetson", jetpack, "")


def test_a_container_on_a_jetson_shows_the_board_alone(tmp_path: Path) -> None:
    found = jetson(board(tmp_path, **{"proc__device-tree__model": "NVIDIA Jetson AGX Thor Developer Kit\0"}))
    assert found == Jetson("NVIDIA Jetson AGX Thor Developer Kit", "", "")
    assert found.jetpack is None


@pytest.mark.parametrize("model", ["", "Raspberry Pi 5 Model B Rev 1.0\0"])
def test_another_machine_is_no_jetson(tmp_path: Path, model: str) -> None:
    assert jetson(board(tmp_path, **{"proc__device-tree__model": model})) is None
