"""What only a GPU can show: the kernel's exactness there, and engines through the whole pipeline."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from contextlib import closing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from driver import stand_in
from support.pixel_reference import preprocess
from support.shared_data import all_photos, odd_images
from support.tiny_models import CONTRACT, SIZE, write_images, write_onnx
from trt_cls.artefacts.sidecar import BuilderName, Profile, Sidecar, write_sidecar
from trt_cls.contract import Contract, Preprocessing
from trt_cls.data.folder import Sample, list_images
from trt_cls.engines import open_engine
from trt_cls.engines.tensorrt.api import RUNTIMES
from trt_cls.engines.tensorrt.engine import TensorRtEngine
from trt_cls.evaluation.evaluate import predict
from trt_cls.export.tensorrt import RTX_CAPABILITIES
from trt_cls.gpu import visible_gpu
from trt_cls.preprocessing.cuda import CudaPreprocessing
from trt_cls.preprocessing.images import decode
from trt_cls.preprocessing.pillow import hwc

if visible_gpu() is None or find_spec("pycuda") is None:
    pytest.skip("no NVIDIA GPU, or no pycuda", allow_module_level=True)  # one line of the report

pytestmark = pytest.mark.gpu
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DESCRIPTIONS = [
    Preprocessing(3, 224, 224, "center", "bilinear", "rgb", 255.0, *IMAGENET),
    Preprocessing(3, 160, 112, "none", "bicubic", "bgr", 255.0, *IMAGENET),
    Preprocessing(1, 75, 130, "center", "bicubic", "gray", 1.0, (117.3786,), (1.0,)),
]
SMALLEST, LARGEST = 2, 8
KERNELS = 1e-6
"""TensorRT-RTX takes other kernels once those for a shape are compiled, which add up in another order."""


def small_batches() -> ModuleType:
    specification = importlib.util.spec_from_file_location("small_batches", Path(__file__).parent / "small_batches.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def differences(paths: list[Path], preprocessing: Preprocessing) -> int:
    count = 0
    with closing(CudaPreprocessing(preprocessing)) as kernel:
        for start in range(0, len(paths), 16):
            images = [decode(path, preprocessing.channels) for path in paths[start : start + 16]]
            found = kernel.preprocess([hwc(image) for image in images])
            expected = np.stack([preprocess(image, preprocessing) for image in images])
            count += np.count_nonzero(found.view(np.uint32) != expected.view(np.uint32))
    return count


@pytest.mark.parametrize("preprocessing", DESCRIPTIONS)
def test_tensors_of_photographs_are_those_of_the_cpu_to_the_bit(preprocessing: Preprocessing) -> None:
    photos = all_photos()[:: 20 if stand_in.is_here() else 1]  # tests/kernels has the others on the CPU
    assert differences(photos, preprocessing) == 0


@pytest.mark.parametrize("preprocessing", DESCRIPTIONS)
def test_tensors_of_odd_images_are_those_of_the_cpu_to_the_bit(preprocessing: Preprocessing) -> None:
    assert differences(odd_images(), preprocessing) == 0


def test_tensors_of_odd_sizes_are_those_of_the_cpu_to_the_bit() -> None:
    module = small_batches()
    assert [module.different_values(preprocessing) for preprocessing in module.descriptions()] == [0] * 40


def test_training_images_of_odd_sizes_are_those_of_the_cpu_to_the_bit() -> None:
    module = small_batches()
    assert [module.different_augmented_values(preprocessing) for preprocessing in module.descriptions()] == [0] * 40


@pytest.mark.parametrize("preprocessing", DESCRIPTIONS)
def test_tensors_stay_as_they_are_when_later_batches_come(preprocessing: Preprocessing) -> None:
    """Batches of growing and of shrinking sizes."""
    random = np.random.default_rng(0)
    results = []
    with closing(CudaPreprocessing(preprocessing)) as kernel:
        for count, largest in ((1, 30), (3, 90), (7, 200), (2, 60)):
            shapes = [
                (*size, 3)[: 2 + (preprocessing.channels == 3)] for size in random.integers(1, largest, (count, 2))
            ]
            images = [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
            results.append((images, kernel.preprocess([hwc(image) for image in images])))
    for images, tensors in results:
        expected = np.stack([preprocess(image, preprocessing) for image in images])
        np.testing.assert_array_equal(tensors.view(np.uint32), expected.view(np.uint32))


def build(trt: Any, builder_name: BuilderName, onnx: Path) -> bytes | None:
    """A plan for the GPU at hand, whatever its generation; None where this TensorRT can't."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR)).parse(onnx.read_bytes())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile.set_shape("input_1", *((batch, 3, SIZE, SIZE) for batch in (SMALLEST, 4, LARGEST)))
    assert config.add_optimization_profile(profile) == 0
    if builder_name == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else bytes(plan)


@pytest.fixture(params=list(RUNTIMES))
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """model.engine beside the model.onnx that it was built from."""
    builder: BuilderName = request.param
    try:
        trt = import_module(RUNTIMES[builder][0])
    except ImportError:
        pytest.skip(f"{builder} is not installed")
    if not hasattr(trt, "Builder"):
        pytest.skip(f"{builder} is not installed whole")
    gpu, onnx, path = visible_gpu(), write_onnx(tmp_path / "model.onnx"), tmp_path / "model.engine"
    content = build(trt, builder, onnx)
    generation = "SM" + gpu.compute_capability.replace(".", "")
    if content is None and builder == "tensorrt-rtx" and generation not in RTX_CAPABILITIES:
        pytest.skip(f"{builder} {trt.__version__} is not for {gpu}")
    assert content is not None, f"{builder} {trt.__version__} builds no engine for {gpu}"
    path.write_bytes(content)
    write_sidecar(path, sidecar_of(CONTRACT, content, builder, trt.__version__, gpu.compute_capability))
    return path


def sidecar_of(contract: Contract, plan: bytes, builder: BuilderName, version: str, capability: str) -> Sidecar:
    digest = hashlib.sha256(plan).hexdigest()
    profile = Profile(SMALLEST, 4, LARGEST)
    return Sidecar(contract, digest, builder, version, (capability,), "", profile, "model.onnx", digest)


def samples_in(folder: Path) -> list[Sample]:
    samples = [Sample(path) for path in list_images(write_images(folder / "images", 15, 50))]
    samples[7].path.write_text("broken")
    return samples


@pytest.mark.parametrize("images", [1, 4, 21])
def test_an_engine_answers_as_onnx_runtime_does(plan: Path, images: int) -> None:
    pixels = np.random.default_rng(0).random((images, 3, SIZE, SIZE), np.float32)
    with closing(open_engine(plan.with_name("model.onnx"), "cpu")) as reference, closing(open_engine(plan)) as engine:
        # float32 on both sides
        np.testing.assert_allclose(engine.infer(pixels), reference.infer(pixels), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_the_pipeline_on_the_gpu_answers_as_that_on_the_cpu(plan: Path, tmp_path: Path, batch_size: int) -> None:
    samples = samples_in(tmp_path)
    with closing(TensorRtEngine(plan)) as engine:
        expected = predict(engine, samples, batch_size=batch_size, workers=2, executor="cpu")
        found = predict(engine, samples, batch_size=batch_size, workers=2, executor="cuda")
    assert (found.samples, found.skipped) == (expected.samples, expected.skipped)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=KERNELS)


def test_graphs_change_no_answer(plan: Path, tmp_path: Path) -> None:
    samples = samples_in(tmp_path)
    answers = []
    for graphs in (True, False):
        with closing(TensorRtEngine(plan, graphs=graphs)) as engine:
            answers.append(predict(engine, samples, batch_size=4, workers=2, executor="cuda").probabilities)
    np.testing.assert_allclose(*answers, atol=KERNELS)
