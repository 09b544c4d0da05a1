from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.tiny_models import COLORS, CONTRACT, probabilities, write_images, write_onnx
from trt_cls.cli import main
from trt_cls.contract import Conformal, Contract, Reject


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "model.onnx")


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_an_image_gets_its_likeliest_labels(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    color = (200, 10, 100)
    Image.new("RGB", (30, 20), color).save(tmp_path / "image.png")
    red, green, blue = probabilities(color)
    assert main(["infer", "-m", str(model), "-i", str(tmp_path / "image.png")]) == 0
    assert capsys.readouterr().out == f"red    {red:.4f}\nblue   {blue:.4f}\ngreen  {green:.4f}\n"
    assert main(["infer", "-m", str(model), "-i", str(tmp_path / "image.png"), "--top-k", "1"]) == 0
    assert capsys.readouterr().out == f"red  {red:.4f}\n"
    assert not (tmp_path / "result.csv").exists()


def test_one_image_loads_nothing_that_it_does_without(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = ["infer", "-m", str(model), "-i", str(tmp_path / "a.png"), "--provider", "cpu"]
    code = f"import sys; from trt_cls.cli import main; assert main({arguments!r}) == 0; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert {"onnxruntime", "PIL.PngImagePlugin"} <= loaded
    tensorrt = {"trt_cls.engines.tensorrt.engine", "trt_cls.preprocessing.cuda", "trt_cls.gpu"}
    assert not loaded & {*tensorrt, "torch", "onnx", "safetensors", "hashlib", "PIL.TiffImagePlugin", "rich", "scipy"}


@pytest.mark.parametrize("flag", ["-i", "-d", "--image_dir"])
@pytest.mark.parametrize("written", [False, True])
def test_a_folder_is_printed_or_written_to_result_csv(
    model: Path, tmp_path: Path, flag: str, written: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 3)
    (images / "green" / "0.png").rename(images / "green" / 'a, "b".png')
    results = ["-r", str(tmp_path / "results")] if written else []
    assert main(["infer", "-m", str(model), flag, str(images), "-b", "2", "-k", "key", *results]) == 0
    assert not list(images.rglob("*.csv"))
    printed = list(csv.reader(capsys.readouterr().out.splitlines()))
    found = rows(tmp_path / "results" / "result.csv") if written else printed
    confidence = f"{max(probabilities(COLORS['red'])):.6f}"
    assert len(found) == 9
    for path, label, score in found:
        assert Path(path).is_file()
        assert (Path(path).parent.name, score) == (label, confidence)
    assert str(images / "green" / 'a, "b".png') in [row[0] for row in found]


def test_several_paths_patterns_and_folders_are_labeled_once_each(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_images(tmp_path / "images", 2))
    Path("red/[1].png").write_bytes(Path("red/1.png").read_bytes())

    def labeled(*words: str) -> list[str]:
        assert main(["infer", "-m", str(model), *words]) == 0
        return [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]

    blue, green = ["blue/0.png", "blue/1.png"], ["green/0.png", "green/1.png"]
    assert labeled("-i", "green/0.png", "-i", "blue") == ["green/0.png", *blue]
    assert labeled("-i", "green/0.png", "blue/1.png", "-b", "1") == ["green/0.png", "blue/1.png"]
    assert labeled("-i", "*e*/1.png") == ["blue/1.png", "green/1.png", "red/1.png"]
    assert labeled("-i", "**/0.png", "blue", "-k", "key") == ["blue/0.png", "green/0.png", "red/0.png", "blue/1.png"]
    assert labeled("-i", "[bg]*") == [*blue, *green]
    assert labeled("-i", "red/[1].png", "green/0.png") == ["red/[1].png", "green/0.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no image to label"),
        (("-i", "*.gif"), "*.gif: no file matches this pattern"),
        (("-i", ".", "absent"), "absent: no such file"),
        (("-i", ".", "-"), "-i -: 2 sources found; expected a list, a video or a camera alone"),
        (("-i", "a.tar", "b.tar"), "-i a.tar: 2 sources found; expected shards alone"),
        (("-i", "a.mp4", "b.png"), "-i a.mp4: 2 sources found"),
    ],
)
def test_sources_that_can_t_be_labeled_together_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(write_images(tmp_path / "images", 1))
    assert main(["infer", "-m", str(model), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_name_that_is_no_utf8_comes_out_as_it_is(model: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    name = b"caf\xe9.png"
    (images / "red" / "0.png").rename(images / os.fsdecode(name))
    (images / os.fsdecode(b"\xff.jpg")).write_text("broken")
    assert main(["infer", "-m", str(model), "-i", str(images), "-r", str(images)]) == 0
    assert name + b",red," in (images / "result.csv").read_bytes()


def test_broken_images_are_skipped_counted_and_listed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 1)
    (images / "broken.jpg").write_text("text")
    assert main(["infer", "-m", str(model), "-i", str(images), "-r", str(images)]) == 0
    out, err = capsys.readouterr()
    assert out == f"3 images labeled, 1 skipped; written: {images / 'result.csv'}\n"
    assert err.startswith(f"skipped: {images / 'broken.jpg'}: ")
    assert len(rows(images / "result.csv")) == 3


@pytest.mark.parametrize("name", ["broken.jpg", "missing.jpg", "empty", "text.txt"])
def test_nothing_to_label_is_an_error(
    model: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_text("text")
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    assert main(["infer", "-m", str(model), "-i", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert name in err
    assert not list(tmp_path.rglob("result.csv"))


@pytest.mark.parametrize(
    "arguments",
    ["-m model.onnx -i a.tar -o out -r results", "-m model.onnx -i a.tar -o out --top-k 2", "--merge out -r x"],
)
def test_options_without_effect_are_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", *arguments.split()]) == 2
    assert "leave the other out" in capsys.readouterr().err


def test_a_class_map_of_other_classes_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 1)
    classmap = tmp_path / "classmap.json"
    classmap.write_text(json.dumps({"red": 0, "green": 1}))
    assert main(["infer", "-m", str(model), "-i", str(images), "-cm", str(classmap)]) == 2
    assert "disagree on the classes" in capsys.readouterr().err


def test_a_spec_of_other_pixels_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", 1)
    (tmp_path / "spec.txt").write_text(
        """model_config { input_image_size: "3,16,16" }
        train_config { train_dataset_path: "a" val_dataset_path: "b" optimizer { sgd { } } reg_config { type: "None" }
                       lr_config { cosine { learning_rate: 0.1 } } }"""
    )
    assert main(["infer", "-m", str(model), "-i", str(images), "-e", str(tmp_path / "spec.txt")]) == 2
    assert "channel_order is bgr in the spec and rgb in the model" in capsys.readouterr().err


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Puts bytes on stdin."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_list_on_stdin_is_labeled_in_its_order(
    model: Path, tmp_path: Path, stdin: Callable[[bytes], None], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    images = write_images(tmp_path / "images", 1)
    strange = os.fsdecode(os.fsencode(images / "green") + b"/\xe9.png")
    (images / "green" / "0.png").rename(strange)
    paths = [os.fsencode(images / "blue" / "0.png"), os.fsencode(strange), os.fsencode(images / "red" / "0.png")]
    stdin(b"\n".join([*paths, b""]))
    assert main(["infer", "-m", str(model), "-i", "-"]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    confidence = f"{max(probabilities(COLORS['red'])):.6f}".encode()
    names = (b"blue", b"green", b"red")
    assert lines == [b",".join((path, name, confidence)) for path, name in zip(paths, names, strict=True)]
    stdin(b"\n".join(paths))
    assert main(["infer", "-m", str(model), "-i", "-", "-r", str(tmp_path / "results")]) == 0
    assert (tmp_path / "results" / "result.csv").read_bytes().splitlines() == lines


def test_an_empty_list_is_an_error(
    model: Path, stdin: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(b"\n")
    assert main(["infer", "-m", str(model), "-i", "-"]) == 2
    assert "no path on stdin" in capsys.readouterr().err


def test_json_lines_hold_the_ranking(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", 2)
    assert (
        main(["infer", "-m", str(model), "-i", str(images), "--format", "jsonl", "--top-k", "2", "-r", str(images)])
        == 0
    )
    assert "6 images labeled" in capsys.readouterr().out
    found = [json.loads(line) for line in (images / "result.jsonl").read_text().splitlines()]
    assert [Path(entry["path"]).parent.name for entry in found] == [entry["label"] for entry in found]
    red = found[-1]
    expected = [round(share, 6) for share in probabilities(COLORS["red"])[:2]]
    assert [place["label"] for place in red["top"]] == ["red", "green"]
    assert [place["confidence"] for place in red["top"]] == pytest.approx(expected, abs=1e-6)
    assert red["confidence"] == red["top"][0]["confidence"]
    assert main(["infer", "-m", str(model), "-i", str(images / "red" / "0.png"), "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "red"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Ten red, ten green and fifteen blue frames; more than a batch."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for color, count in zip(COLORS.values(), (10, 10, 15), strict=True):
        for _ in range(count):
            writer.write(np.full((48, 64, 3), color[::-1], np.uint8))
    writer.release()
    return path


def test_a_video_is_labeled_frame_by_frame(
    model: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", "-m", str(model), "-i", str(video)]) == 0
    lines = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert [line[0] for line in lines] == [str(number) for number in range(35)]
    assert [line[1] for line in lines] == ["red"] * 10 + ["green"] * 10 + ["blue"] * 15
    # JPEG moves the colors by a few levels
    assert float(lines[0][2]) == pytest.approx(max(probabilities(COLORS["red"])), abs=0.01)
    assert main(["infer", "-m", str(model), "-i", str(video), "--format", "jsonl", "-r", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"35 images labeled; written: {tmp_path / 'result.jsonl'}\n"
    assert json.loads((tmp_path / "result.jsonl").read_text().splitlines()[12])["frame"] == 12


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("absent.mp4", 2, "no such file; expected a video"),
        ("text.mp4", 2, "no frame can be decoded"),
        ("camera:one", 2, "is not a number; expected one"),
        ("camera:97", 1, "camera 97 gives no image"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_no_frames_are_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, status: int, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("cv2")
    (tmp_path / "text.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    assert main(["infer", "-m", str(model), "-i", source]) == status
    assert message in capsys.readouterr().err


def test_a_camera_ends_when_it_is_interrupted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def frames(camera: int) -> Iterator[np.ndarray]:
        assert camera == 2
        for color in ("red", "blue"):
            yield np.full((20, 20, 3), COLORS[color], np.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr("trt_cls.evaluation.video.frames", frames)
    assert main(["infer", "-m", str(model), "-i", "camera:2"]) == 0
    assert [line.split(",")[:2] for line in capsys.readouterr().out.splitlines()] == [["0", "red"], ["1", "blue"]]


def test_a_video_needs_opencv(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_text("video")
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["infer", "-m", str(model), "-i", str(tmp_path / "a.mp4")]) == 1
    assert 'pip install "trt-cls[video]"' in capsys.readouterr().err


RULES = replace(CONTRACT, conformal=Conformal(0.9, 0.75), reject=Reject(0.05, 0.45))
PICTURES = {"a.png": (255, 0, 0), "b.png": (200, 190, 0), "c.png": (100, 100, 100)}


@pytest.mark.parametrize(
    ("rules", "decisions"),
    [
        (RULES, ["label", "set", "unknown"]),
        (replace(RULES, reject=None), ["label", "set", "set"]),
        (replace(RULES, conformal=None), ["label", "label", "unknown"]),
        (CONTRACT, [None, None, None]),
    ],
)
def test_rules_of_the_model_name_a_label_a_set_or_unknown(
    tmp_path: Path, rules: Contract, decisions: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = write_onnx(tmp_path / "model.onnx", rules), tmp_path / "images"
    images.mkdir()
    for name, color in PICTURES.items():
        Image.new("RGB", (16, 16), color).save(images / name)
    expected, found = [], []
    for (name, color), kind in zip(PICTURES.items(), decisions, strict=True):
        ranking = sorted(zip(COLORS, probabilities(color), strict=True), key=lambda pair: -pair[1])
        named = {"set": [pair for pair in ranking if pair[1] >= 0.25], "unknown": [("unknown", ranking[0][1])]}
        said = named.get(kind or "", ranking[:1])
        expected += [[str(images / name), label, f"{share:.6f}"] for label, share in said]
        found.append([{"label": label, "confidence": pytest.approx(share, abs=1e-6)} for label, share in said])
    assert main(["infer", "-m", str(model), "-i", str(images), "-r", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"3 images labeled, 0 skipped; written: {tmp_path / 'result.csv'}\n"
    assert rows(tmp_path / "result.csv") == expected
    assert main(["infer", "-m", str(model), "-i", str(images), "--format", "jsonl", "--top-k", "2"]) == 0
    for line, named, kind in zip(capsys.readouterr().out.splitlines(), found, decisions, strict=True):
        written = json.loads(line)
        assert (written.get("decision"), written.get("set")) == (kind, named if kind == "set" else None)
        assert {key: written[key] for key in ("label", "confidence")} == named[0]
        assert len(written["top"]) == 2
    assert main(["infer", "-m", str(model), "-i", str(images / "b.png")]) == 0
    first = {"set": ["red or green"], "label": ["red"], None: []}[decisions[1]]
    assert capsys.readouterr().out.splitlines()[:-3] == first
