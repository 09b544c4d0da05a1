"""Modules that lie in the current folder are never executed, whatever process is started there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.tiny_models import write_images, write_onnx
from trt_cls.isolation import MAIN_CODE, python
from trt_cls.models.tao import hdf5

NAMES = [
    "abc", "argparse", "ast", "base64", "collections", "copy", "csv", "ctypes", "dataclasses", "datetime",
    "decimal", "enum", "functools", "glob", "h5py", "hashlib", "heapq", "inspect", "io", "json", "logging",
    "math", "mmap", "numpy", "onnx", "onnxruntime", "pathlib", "PIL", "pickle", "platform", "queue", "random",
    "re", "rich", "safetensors", "select", "shutil", "signal", "site", "socket", "statistics", "string",
    "struct", "subprocess", "tempfile", "threading", "timm", "token", "torch", "torchvision", "traceback",
    "types", "typing", "uuid", "warnings", "weakref", "yaml", "zipfile", "click", "google", "jinja2", "msgspec",
    "multiprocessing",
]  # fmt: skip
FORKED = """
import multiprocessing
from trt_cls.isolation import start_forkserver
start_forkserver(["trt_cls.errors"])
process = multiprocessing.get_context("forkserver").Process(target=print, args=("forked",))
process.start()
process.join()
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, full of modules that write down that they were executed."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(planted: Path, command: list[str], status: int | None = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=planted, env=environment, capture_output=True, text=True, timeout=1000)
    assert not (planted / "executed").exists(), (planted / "executed").read_text()
    assert done.returncode == status or status is None, done.stderr
    return done.stdout


def test_there_are_forty_names_and_python_itself_would_execute_them(planted: Path) -> None:
    assert len(NAMES) >= 40
    subprocess.run([sys.executable, "-c", "import h5py"], cwd=planted, check=True, capture_output=True)
    assert "h5py" in (planted / "executed").read_text().split()


def test_the_reader_of_tao_models_executes_none(planted: Path) -> None:
    (planted / "model.hdf5").write_bytes(b"none")
    hdf5.require_readable(planted / "model.hdf5")
    assert not (planted / "executed").exists()


def test_forked_processes_execute_none(planted: Path) -> None:
    assert run(planted, python(FORKED)) == "forked\n"


def test_the_program_of_each_gpu_executes_none(planted: Path) -> None:
    write_onnx(planted / "model.onnx")
    assert "resnet" in run(planted, [sys.executable, "-c", MAIN_CODE, "inspect", "model.onnx"])


ALL_COMMANDS = """
import json, os, sys
from trt_cls.cli import main
if __name__ == "__main__":  # loaders import it
    for words, status in json.loads(sys.argv[1]):
        found = main(words)
        assert found == status or status is None, (words, found)
        assert not {"", ".", os.getcwd()} & set(sys.path), words
"""


@pytest.mark.slow
def test_no_command_executes_any(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In one process, whose program lies elsewhere, as the installed one does; `models` in that itself.

    What an earlier command has imported, a later one takes from memory: the path for imports is looked at after each.
    """
    write_images(planted / "images", 4)
    write_onnx(planted / "model.onnx")
    sections = """
        model_config { arch: "resnet" n_layers: 10 input_image_size: "3,16,16" }
        train_config {
          train_dataset_path: "images" val_dataset_path: "images" n_epochs: 1 n_workers: 2 batch_size_per_gpu: 4
          preprocess_mode: "torch" optimizer { sgd {} } reg_config { type: "None" }
          lr_config { cosine { learning_rate: 0.1 } }
        }
        eval_config { eval_dataset_path: "images" }
    """
    (planted / "spec.txt").write_text(sections)
    (planted / "model.hdf5").write_bytes(b"none")
    best = "results/weights/best.safetensors"
    commands: list[tuple[list[str], int | None]] = []
    for typed, status in (
        ("train -e spec.txt -r results --device cpu", 0),
        (f"evaluate -e spec.txt -m {best}", 0),
        (f"infer -m {best} -i images", 0),
        (f"export -m {best} -o out.onnx", 0),
        (f"prune -m {best} -o pruned.safetensors", 0),
        (f"compare {best} out.onnx --images images", 0),
        (f"preprocess images/red -m {best} -o out.npy", 0),
        ("benchmark out.onnx", 0),
        ("inspect out.onnx", 0),
        ("spec check spec.txt", 0),
        ("doctor", None),
        ("import-tao model.hdf5 -o imported.safetensors", 2),
    ):
        commands.append((typed.split(), status))
    program = tmp_path_factory.mktemp("program") / "all_commands.py"
    program.write_text(ALL_COMMANDS)
    run(planted, [sys.executable, str(program), json.dumps(commands)])
    run(planted, [str(Path(sys.executable).with_name("trt-cls")), "models"])
    torchrun = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    torchrun += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(planted, [*torchrun, "-m", "trt_cls", "evaluate", "-e", "spec.txt", "-m", best, "--provider", "cpu"], None)
