"""Every trt-cls command of docs/jetson.md runs, in its order, over the stand-in driver."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from driver import stand_in
from driver.stand_in import Driver
from support.tiny_models import SIZE, write_images, write_onnx
from trt_cls.cli import main

stand_in.require()
pytestmark = pytest.mark.driver
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "jetson.md"


@stand_in.lazy
def test_the_commands_of_the_guide_lead_to_answers(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trt_cls.evaluation.stages.COPIED", 1 << 10)
    write_onnx(tmp_path / "model.onnx")
    write_images(tmp_path / "photos", 3)
    model = f'model_config {{ arch: "resnet" n_layers: 10 input_image_size: "3,{SIZE},{SIZE}" }}'
    (tmp_path / "experiment_spec.txt").write_text(f'{model} eval_config {{ eval_dataset_path: "photos" top_k: 1 }}')
    blocks = re.findall(r"^```console\n(.*?)^```", GUIDE.read_text(), flags=re.DOTALL | re.MULTILINE)
    typed = [shlex.split(line)[1:] for line in "".join(blocks).splitlines() if line.startswith("trt-cls ")]
    assert [words[0] for words in typed] == [
        "doctor", "export", "inspect", "evaluate", "infer", "compare", "benchmark",
    ]  # fmt: skip
    for words in typed:
        short = ["--seconds", "0"] if words[0] == "benchmark" else []
        status = main(words + short)
        assert status == 0 or words[0] == "doctor", (words, capsys.readouterr())
    said = capsys.readouterr().out
    assert "top-1 accuracy     1.0000" in said
    assert "building model.engine with tensorrt 10.9" in said
