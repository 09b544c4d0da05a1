from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from support import shared_data
from trt_cls import load
from trt_cls.artefacts.decoding import contract_from_json
from trt_cls.artefacts.onnx_file import OnnxModel, write_onnx
from trt_cls.artefacts.sidecar import Profile, Sidecar, file_sha256, read_sidecar, write_sidecar
from trt_cls.cli import main
from trt_cls.contract import METADATA_KEY, Conformal, Contract, Preprocessing, Reject
from trt_cls.engines.sidecar import read_plan
from trt_cls.errors import RequestError
from trt_cls.serving import triton as writer
from trt_cls.serving.common import ServedPlan, plan_for_servers
from trt_cls.serving.triton import write_triton

pytest.importorskip("torch")
pytest.importorskip("tritonclient.grpc")

from support.triton_stand_in import read_config, serve

NO_PLAN = ServedPlan(None, Profile(1, 8, 32), "not asked for")
PHOTO_PIXELS = Preprocessing(
    3, 32, 32, "center", "bicubic", "rgb", divisor=0.5, mean=(247.4, 232.6, 207.0), std=(2.2, 2.0, 1.8)
)


def silent(line: str) -> None:
    pass


@pytest.fixture(params=["fp32", "fp16"])
def exported(request: pytest.FixtureRequest, contract: Contract, tmp_path: Path) -> Path:
    """An exported file for photographs, under a name that servers could not take."""
    graph = request.getfixturevalue(request.param)
    path = tmp_path / "größtes netz.onnx"
    write_onnx(OnnxModel(graph, replace(contract, preprocessing=PHOTO_PIXELS, precision=request.param)), path)
    return path


@pytest.fixture
def engine(contract: Contract, tmp_path: Path) -> Path:
    """A plan of TensorRT, as far as its sidecar says."""
    path = tmp_path / "model.engine"
    path.write_bytes(b"plan")
    sidecar = Sidecar(
        contract, file_sha256(path), "tensorrt", "10.13.0", ("8.7",), "Orin", Profile(1, 4, 16), "model.onnx", "",
    )  # fmt: skip
    write_sidecar(path, sidecar)
    return path


def test_the_configuration_is_valid_by_tritons_schema_and_true(exported: Path, tmp_path: Path) -> None:
    from tritonclient.grpc import model_config_pb2 as schema

    write_triton(exported, NO_PLAN, tmp_path / "repository", silent)
    model = tmp_path / "repository" / "gr_tes_netz"
    config = read_config(model)
    assert (config.name, config.backend, config.max_batch_size) == (model.name, "onnxruntime", 32)
    (fed,), (answer,) = config.input, config.output
    assert (fed.name, fed.data_type, list(fed.dims)) == ("input_1", schema.TYPE_FP32, [3, 32, 32])
    assert (answer.name, answer.data_type, list(answer.dims)) == ("predictions", schema.TYPE_FP32, [5])
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.version_policy.latest.num_versions == 1
    assert (model / "1" / config.default_model_filename).read_bytes() == exported.read_bytes()
    assert (model / answer.label_filename).read_text().splitlines() == ["bird", "cat", "dog", "frog", "ship"]
    carried = contract_from_json(config.parameters[METADATA_KEY].string_value, "")
    assert carried.preprocessing == PHOTO_PIXELS


def test_a_plan_is_served_in_the_batches_that_it_was_built_for(
    fp32: onnx.ModelProto, contract: Contract, engine: Path, tmp_path: Path
) -> None:
    write_onnx(OnnxModel(fp32, contract), tmp_path / "model.onnx")
    write_triton(
        tmp_path / "model.onnx", plan_for_servers(engine, "", Profile(1, 8, 32)), tmp_path / "repository", silent
    )
    model = tmp_path / "repository" / "model"
    config = read_config(model)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 16)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    plan = model / "1" / config.default_model_filename
    assert read_plan(plan, read_sidecar(plan)) == b"plan"


def test_an_engine_that_servers_do_not_load_gives_way_to_the_onnx_file(engine: Path) -> None:
    write_sidecar(engine, replace(read_sidecar(engine), builder="tensorrt-rtx"))
    plan = plan_for_servers(engine, "", Profile(1, 8, 32))
    assert plan.path is None
    assert "tensorrt-rtx" in plan.why


def run_client(model: Path, url: str, images: Path, *flags: str) -> list[list[str]]:
    command = [sys.executable, "-W", "error", str(model / "client.py"), str(images), "--url", url, *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(csv.reader(done.stdout.splitlines()))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 photographs, evenly spread over the classes."""
    found = sorted(path for path in shared_data.photos().rglob("*") if path.is_file())
    folder = tmp_path_factory.mktemp("photos")
    for path in found[:: len(found) // 50][:50]:
        (folder / path.name).symlink_to(path)
    assert len(list(folder.iterdir())) == 50
    return folder


@pytest.mark.parametrize(("precision", "level"), [("fp16", 0), ("int8", 0), ("fp8", 2)])
def test_files_in_fp8_are_served_without_optimizations_that_know_no_fp8(
    fp16: onnx.ModelProto, contract: Contract, tmp_path: Path, precision: Any, level: int
) -> None:
    """2 is Triton's number for none."""
    write_onnx(OnnxModel(fp16, replace(contract, precision=precision)), tmp_path / "model.onnx")
    write_triton(tmp_path / "model.onnx", NO_PLAN, tmp_path / "repository", silent)
    assert read_config(tmp_path / "repository" / "model").optimization.graph.level == level


def test_the_clients_answers_are_those_of_infer(exported: Path, photos: Path, tmp_path: Path) -> None:
    write_triton(exported, NO_PLAN, tmp_path / "repository", silent)
    model = tmp_path / "repository" / "gr_tes_netz"
    with serve(model) as (url, batches):
        found = run_client(model, url, photos, "--batch-size", "16")
    assert batches == [16, 16, 16, 2]
    flags = ["-i", str(photos), "-r", str(tmp_path), "-b", "16", "--provider", "cpu"]
    assert main(["infer", "-m", str(exported), *flags]) == 0
    with (tmp_path / "result.csv").open(newline="") as file:
        expected = list(csv.reader(file))
    assert len({label for _, label, _ in expected}) > 1, "the network answers all the same: nothing would be proved"
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    # Thread counts of the two sessions differ, and with them the order of additions.
    assert [float(row[2]) for row in found] == pytest.approx([float(row[2]) for row in expected], abs=2e-6)


def test_the_client_names_sets_and_unknown_images_as_infer_does(
    fp32: onnx.ModelProto, contract: Contract, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(OnnxModel(fp32, contract), path)
    with load(path, "cpu") as model:
        answers = model.predict_proba(sorted(pictures.rglob("*.png")))
    *_, second, best = np.sort(answers.astype(np.float64), axis=1).T
    threshold = float(np.sort(best)[2:4].mean())  # between the third and the fourth: three images are below
    quantile = 1 - float(np.median(second[best > threshold]))
    write_onnx(
        OnnxModel(fp32, replace(contract, conformal=Conformal(0.9, quantile), reject=Reject(0.2, threshold))), path
    )
    write_triton(path, NO_PLAN, tmp_path / "repository", silent)
    with serve(tmp_path / "repository" / "model") as (url, _):
        found = run_client(tmp_path / "repository" / "model", url, pictures)
    assert main(["infer", "-m", str(path), "-i", str(pictures), "-r", str(tmp_path), "--provider", "cpu"]) == 0
    with (tmp_path / "result.csv").open(newline="") as file:
        expected = list(csv.reader(file))
    named = Counter(path for path, _, _ in expected)
    unknown = {path for path, label, _ in expected if label == "unknown"}
    assert len(named) == 12
    assert len(unknown) >= 3
    assert {named[path] for path in set(named) - unknown} >= {1, 2}
    assert [row[:2] for row in found] == [row[:2] for row in expected]


def test_a_file_with_embedded_preprocessing_is_sent_8_bit_pixels(
    contract: Contract, pictures: Path, tmp_path: Path
) -> None:
    source = tmp_path / "embedded.onnx"
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        means (uint8[N,32,32,3] input_1) => (float[N,3] predictions) {
            pixels = Cast<to = 1>(input_1)
            planes = Transpose<perm = [0, 3, 1, 2]>(pixels)
            pooled = GlobalAveragePool(planes)
            flat = Flatten(pooled)
            predictions = Softmax(flat)
        }"""
    model = onnx.parser.parse_model(text)
    pixels = replace(contract.preprocessing, embedded=True, channel_order="rgb", mean=(0.0, 0.0, 0.0))
    write_onnx(OnnxModel(model, replace(contract, preprocessing=pixels, classes=("red", "green", "blue"))), source)
    write_triton(source, NO_PLAN, tmp_path / "repository", silent)
    with serve(tmp_path / "repository" / "embedded") as (url, _):
        found = run_client(tmp_path / "repository" / "embedded", url, pictures)
    for path, label, _ in found:
        with Image.open(path) as image:
            means = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).mean(axis=(0, 1))
        assert label == ("red", "green", "blue")[means.argmax()]


def test_the_client_never_sends_more_than_the_server_takes(exported: Path, pictures: Path, tmp_path: Path) -> None:
    write_triton(exported, replace(NO_PLAN, profile=Profile(1, 2, 5)), tmp_path / "repository", silent)
    model = tmp_path / "repository" / "gr_tes_netz"
    with serve(model) as (url, batches):
        assert len(run_client(model, url, pictures)) == 12
    assert batches == [5, 5, 2]


def test_a_failure_leaves_the_repository_as_it_was(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **more: Any) -> str:
        raise OSError("disk full")

    folder = tmp_path / "repository"
    write_triton(exported, NO_PLAN, folder, silent)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(writer, "render", fail)
    with pytest.raises(OSError, match="disk full"):
        write_triton(exported, replace(NO_PLAN, profile=Profile(1, 1, 1)), folder, silent)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not [path for path in folder.rglob(".writing*")]


@pytest.mark.parametrize(
    ("classes", "profile", "message"),
    [
        (("a\nb", "c"), Profile(1, 8, 32), "line breaks"),
        (("a", "c"), Profile(2, 8, 32), "--min-batch 2.*use --min-batch 1"),
    ],
)
def test_what_triton_can_not_serve_is_refused(
    contract: Contract, classes: tuple[str, ...], profile: Profile, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        writer.check_request(replace(contract, classes=classes), profile)


def test_export_writes_both_folders_and_keeps_what_stands_in_them(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    (repository / "other").mkdir(parents=True)
    flags = ["--builder", "none", "--fp16", "--triton", str(repository), "--deepstream", str(tmp_path / "deepstream")]
    assert main(["export", "-m", str(checkpoint), "-o", str(tmp_path / "model.onnx"), *flags]) == 0
    assert sorted(path.name for path in repository.iterdir()) == ["model", "other"]
    assert read_config(repository / "model").name == "model"
    assert (tmp_path / "deepstream" / "nvinfer_config.txt").is_file()
    assert f"tritonserver --model-repository {repository}" in capsys.readouterr().out


def test_export_refuses_before_it_writes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--builder", "none", "--min-batch", "2", "--triton", str(tmp_path / "repository")]
    assert main(["export", "-m", str(checkpoint), "-o", str(tmp_path / "model.onnx"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--min-batch 1" in line
    assert list(tmp_path.iterdir()) == []
