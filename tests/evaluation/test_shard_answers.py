"""Evaluation shard by shard: the figures of one run, each image once, whatever was killed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from support.in_place import atomic_in_place
from support.tiny_models import write_images, write_onnx
from trt_cls.cli import main
from trt_cls.data.folder import image_folder
from trt_cls.data.shard_writer import write_shards
from trt_cls.data.shards import by_shard, shard_folder
from trt_cls.evaluation.inference import answers

Run = Callable[..., int]
SHARDS = 4


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx, its images in folders (one is broken, one has the wrong class), and them in four shards."""
    root = tmp_path_factory.mktemp("sources")
    images = write_images(root / "images", 8)
    (images / "red" / "3.png").write_bytes(b"broken")
    (images / "green" / "2.png").rename(images / "blue" / "other.png")
    assert len(write_shards(image_folder(images), root, "s", 20_000).shards) == SHARDS
    write_onnx(root / "model.onnx")
    return root


@pytest.fixture
def run(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `evaluate` on the shards."""
    monkeypatch.chdir(tmp_path)
    shards = f"{sources}/s-{{000000..{SHARDS - 1:06}}}.tar"

    def evaluate(*arguments: str) -> int:
        asked = ["-m", str(sources / "model.onnx"), "--dataset", shards, "--provider", "cpu", "--top-k", "2"]
        return main(["evaluate", *(asked[:-2] if "-o" in arguments else asked), *arguments])

    return evaluate


def files_in(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_kill_9_leaves_no_file_of_a_name_that_nobody_knows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_cls.evaluation.shard_answers.atomic", atomic_in_place)
    assert run("-o", "out") == 0


def test_figures_are_those_of_one_run_however_the_work_is_divided(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-r", "one", "-b", "3") == 0
    expected = capsys.readouterr()
    assert run("-o", "alone", "-b", "3") == 0
    for rank in (1, 2, 0):
        assert run("-o", "shared", "-b", "3", "--shard", f"{rank}/3") == 0
    (Path("shared") / "s-000002.json").unlink()  # killed between the two files
    assert run("-o", "shared", "-b", "3") == 0
    assert "1 to label" in capsys.readouterr().out
    assert files_in("shared") == files_in("alone")
    for out in ("alone", "shared"):
        assert run("--merge", out, "-r", f"{out}-results", "-b", "3") == 0
        found = capsys.readouterr()
        assert found.err == expected.err
        assert (
            re.sub(r"images/s .*", "backend            onnxruntime-cpu, fp32", expected.out).replace(
                "one/", f"{out}-results/"
            )
            == found.out
        )
    assert files_in("shared-results") == files_in("alone-results")
    one, merged = files_in("one"), files_in("shared-results")
    results = json.loads(one["results.json"])
    del results["seconds"], results["images_per_second"]
    assert json.loads(merged["results.json"]) == results
    assert results["num_images"] == 23
    assert results["top_1_accuracy"] == pytest.approx(22 / 23)
    assert merged["predictions.csv"] == one["predictions.csv"]
    assert b"<h2>Speed</h2>" not in merged["report.html"]


def test_flips_are_part_of_the_answers(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-o", "out", "--tta", "flip") == 0
    assert run("--merge", "out") == 2
    assert "'tta': 'flip'} found, expected" in capsys.readouterr().err
    assert run("--merge", "out", "--tta", "flip", "-r", "results") == 0
    assert json.loads(Path("results/results.json").read_text())["backend"] == "onnxruntime-cpu + flips"
    assert run("--merge", "out", "--tta", "flip", "--strict") == 2
    assert main(["infer", "--merge", "out"]) == 2
    assert "use evaluate --merge" in capsys.readouterr().err


def test_merge_names_what_is_missing_changed_or_of_other_images(
    run: Run, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-o", "out") == 0
    out = Path("out")
    (out / "s-000000.json").unlink()
    (out / "s-000001.safetensors").write_bytes(b"other")
    for number, name, value in ((2, "crc32", np.uint32), (3, "probabilities", np.nan)):
        path = out / f"s-00000{number}.safetensors"
        tensors = load_file(path)
        tensors[name] = (tensors[name] * value(0)) if name == "crc32" else tensors[name] * np.float32(value)
        save_file(tensors, path, {"answers": json.dumps({"backend": "", "skipped": {}})})
        made = json.loads(path.with_suffix(".json").read_text())
        made["output_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_suffix(".json").write_text(json.dumps(made))
    capsys.readouterr()
    assert run("--merge", "out", "-r", "results") == 1
    error = capsys.readouterr().err
    assert "4 of 4 shards are not answered once: s-000000.tar missing, s-000001.tar can't be used (it was chan" in error
    assert "s-000002.tar can't be used (6 images found, which are not the 6 of the shard; remove s-000002.js" in error
    assert "s-000003.tar can't be used (numbers below 0 or above 1 found, expected probabilities" in error
    assert not list(Path("results").iterdir())


@pytest.mark.parametrize("table", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"], ids=["empty", "foreign", "none"])
def test_merge_names_answers_of_others(run: Run, capsys: pytest.CaptureFixture[str], table: bytes) -> None:
    assert run("-o", "out") == 0
    made = json.loads(Path("out/s-000001.json").read_text())
    Path("out/s-000001.safetensors").write_bytes(table)
    Path("out/s-000001.json").write_text(json.dumps(made | {"output_sha256": hashlib.sha256(table).hexdigest()}))
    assert run("--merge", "out") == 1
    assert "1 of 4 shards are not answered once: s-000001.tar can't be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out", "-r", "results"], "-o with -r: expected one of them"),
        (["-o", "out", "--merge", "out"], "-o with --merge: expected one of them"),
        (["--merge", "out", "--shard", "0/2"], "--merge with --shard: expected one of them"),
        (["--merge", "out", "--unknown", "x"], "--merge with --unknown: expected one of them"),
        (["--shard", "0/2"], "without -o; expected a folder"),
        (["-o", "out", "--shard", "x"], "--shard x: expected K/N"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(
    run: Run, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def job(command: str, sources: Path) -> list[str]:
    """The command line of a job, but for the folder to write to."""
    images = {"infer": "-i", "evaluate": "--dataset"}[command]
    shards = f"{sources}/s-{{000000..{SHARDS - 1:06}}}.tar"
    return [command, "-m", str(sources / "model.onnx"), images, shards, "--provider", "cpu", "-b", "2", "-o"]


@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_ctrl_c_and_a_full_disk_leave_complete_outputs_alone(
    command: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = job(command, sources)
    assert main([*typed, str(tmp_path / "one")]) == 0
    again = [*typed, str(tmp_path / "two")]
    seen = 0

    def stopped(*given: Any, **how: Any) -> Iterator[Any]:
        nonlocal seen
        for batch in answers(*given, **how):
            seen += 1
            if seen == 5:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr("trt_cls.evaluation.inference.answers", stopped)
        assert main(again) == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")
    found = files_in(str(tmp_path / "two"))
    assert {name.partition(".")[0] for name in found} == {"shards", "s-000000"}
    assert len(found) == 3

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("trt_cls.files.os.fsync", full)
        assert main(again) == 1
    assert "s-000001." in (error := capsys.readouterr().err)
    assert "can't be written, the disk is full" in error
    assert files_in(str(tmp_path / "two")) == found
    assert main(again) == 0
    assert files_in(str(tmp_path / "two")) == files_in(str(tmp_path / "one"))


@pytest.mark.parametrize("command", ["infer", "evaluate"])
def test_the_same_job_twice_at_once_ends_well(
    command: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = job(command, sources)
    assert main([*typed, str(tmp_path / "one")]) == 0
    again = [*typed, str(tmp_path / "two")]
    flushed, others = os.fsync, 0

    def slowly(descriptor: int) -> None:
        """While this job writes the table of its second shard, the other one does all that is left."""
        nonlocal others
        if "/.s-000001." in os.readlink(f"/proc/self/fd/{descriptor}") and not others:
            others += 1
            assert main(again) == 0
        flushed(descriptor)

    monkeypatch.setattr("trt_cls.files.os.fsync", slowly)
    capsys.readouterr()
    assert main(again) == 0
    said = capsys.readouterr().out
    assert "4 shards, 4 of this process, 3 to label" in said
    assert "s-000003.tar: labeled by another process meanwhile" in said
    assert files_in(str(tmp_path / "two")) == files_in(str(tmp_path / "one"))


def test_images_of_damaged_shards_are_listed_and_a_missing_shard_is_an_error(
    run: Run, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sources, "damaged")
    one, two, three = (Path(f"damaged/s-00000{number}.tar") for number in (1, 2, 3))
    os.truncate(one, one.stat().st_size // 2)
    content = bytearray(two.read_bytes())
    content[512 + 40] ^= 1  # in the first image
    two.write_bytes(content)
    shards = ["--dataset", "damaged/s-{000000..000003}.tar"]
    assert run(*shards, "-r", "one") == 0
    listed = capsys.readouterr().err
    assert listed.count("the shard is truncated: it ends at byte") == 3
    assert listed.count("the shard was changed: CRC-32") == 1
    assert run(*shards, "-o", "out") == 0
    assert "s-000001.tar: 6 images, 3 skipped" in capsys.readouterr().out
    assert run(*shards, "--merge", "out", "-r", "results") == 0
    assert capsys.readouterr().err == listed
    assert (Path("results") / "predictions.csv").read_bytes() == (Path("one") / "predictions.csv").read_bytes()
    three.unlink()
    assert run(*shards, "-o", "out") == 2
    assert f"{three}: no such file, 1 of 4 shards are missing" in capsys.readouterr().err


def test_shards_and_answers_may_be_in_a_store(
    run: Run, sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = pytest.importorskip("fsspec").filesystem("memory")
    monkeypatch.setenv("TRT_CLS_CACHE", str(Path("cache").absolute()))
    monkeypatch.setattr("trt_cls.stores.UNSHARED", ())  # this process goes on after the command
    for path in sources.glob("s*.*"):
        store.pipe_file(f"/shards/{path.name}", path.read_bytes())
    shards = ["--dataset", f"memory://shards/s-{{000000..{SHARDS - 1:06}}}.tar"]
    assert run("-o", "local") == run(*shards, "-o", "memory://answers", "--shard", "1/2") == 0
    assert run(*shards, "--merge", "memory://answers") == 1
    assert "2 of 4 shards are not answered once" in capsys.readouterr().err
    assert run(*shards, "-o", "memory://answers") == run(*shards, "--merge", "memory://answers", "-r", "results") == 0
    assert {Path(name).name: store.cat_file(name) for name in store.ls("/answers", detail=False)} == files_in("local")
    assert run("--merge", "local", "-r", "expected") == 0
    found, expected = (json.loads(Path(name, "results.json").read_text()) for name in ("results", "expected"))
    assert [image["path"] for image in found.pop("skipped")] == ["memory://shards/s-000002.tar/00000019.png"]
    assert found == {name: value for name, value in expected.items() if name != "skipped"}
    store.rm("/", recursive=True)


def test_a_folder_is_refused(run: Run, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-o", "out", "--dataset", str(sources / "images")) == 2
    assert "found with -o or --merge, expected tar shards" in capsys.readouterr().err


def test_a_part_of_the_images_is_divided_by_shard(sources: Path) -> None:
    samples: Any = shard_folder(sources / f"s-{{000000..{SHARDS - 1:06}}}.tar").samples
    part = samples.at(np.array([0, 1, 7, len(samples) - 1]))
    divided = by_shard(part)
    assert [path.name for path in divided] == ["s-000000.tar", "s-000001.tar", "s-000003.tar"]
    assert [sample for samples in divided.values() for sample in samples] == list(part)
    assert all(sample.path.parent == path for path, samples in divided.items() for sample in samples)
