from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import trt_cls
from support.tiny_models import CONTRACT, RGB
from trt_cls.engines import open_engine
from trt_cls.engines.torch import tf32
from trt_cls.errors import ArtefactError, DeviceError, EngineError
from trt_cls.models import build
from trt_cls.models.checkpoint import save_checkpoint
from trt_cls.spec.experiment import ModelConfig

MODEL = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,32,32", use_batch_norm=True)
CONTRACT_32 = replace(CONTRACT, model=MODEL, preprocessing=replace(RGB, height=32, width=32))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build(MODEL, 3), CONTRACT_32)
    return path


def test_answers_with_softmax_in_evaluation_mode(checkpoint: Path) -> None:
    images = np.random.default_rng(0).random((5, 3, 32, 32), np.float32)
    torch.manual_seed(0)
    module = build(MODEL, 3).eval()
    with torch.no_grad():
        logits = module(torch.from_numpy(images)).double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    engine = open_engine(checkpoint, "cpu", threads=1)
    assert engine.backend == "torch-cpu"
    assert engine.contract == CONTRACT_32
    # float32 convolutions may add in another order for another batch size
    np.testing.assert_allclose(engine.infer(images), expected, atol=1e-6)
    np.testing.assert_allclose(engine.infer(images[:1]), expected[:1], atol=1e-6)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="torch-cpu: the engine is closed; open it again"):
        engine.infer(images)


def test_classifies_images(checkpoint: Path) -> None:
    with trt_cls.load(checkpoint, "cpu") as classifier:
        assert classifier.predict(np.zeros((2, 50, 40, 3), np.uint8)).shape == (2,)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_cuda_is_refused_and_auto_is_the_cpu(checkpoint: Path) -> None:
    with pytest.raises(DeviceError, match="finds no CUDA device, it has cpu"):
        open_engine(checkpoint, "cuda")
    assert open_engine(checkpoint).backend == "torch-cpu"


@pytest.mark.parametrize("convolutions", [None, "ieee", "tf32"], ids=["older names", "newer, off", "newer, on"])
def test_a_reference_is_float32_whichever_of_torchs_names_the_program_uses(convolutions: str | None) -> None:
    backends = torch.backends

    def read() -> list[object]:
        if convolutions is None:
            return [backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32]
        return [backends.cudnn.conv.fp32_precision == "tf32", backends.cuda.matmul.fp32_precision == "tf32"]

    before = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32
    try:
        if convolutions is not None:
            backends.cudnn.conv.fp32_precision = convolutions
        found = read()
        with tf32(torch, False):
            assert read() == [False, False]
        assert read() == found
    finally:
        backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu_the_reference_stays_float32(checkpoint: Path) -> None:
    """TF32 would move the answers by about 1e-3."""
    images = np.random.default_rng(0).random((5, 3, 32, 32), np.float32)
    expected = open_engine(checkpoint, "cpu").infer(images)
    np.testing.assert_allclose(open_engine(checkpoint, "cuda").infer(images), expected, atol=1e-5)


def test_a_truncated_checkpoint_is_refused(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        open_engine(checkpoint, "cpu")
