"""Every architecture, pruned at half, goes all the way: file, ONNX in both precisions, engine, evaluation."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from calibration import calibrate
from models.recipe import fill
from shared_data import cifar10

from trt_cls.contract import Contract, Preprocessing
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.stream import stream
from trt_cls.export.export import export
from trt_cls.models import build
from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint
from trt_cls.pruning.prune import prune_network
from trt_cls.pruning.selection import Criteria
from trt_cls.spec.architectures import ARCHITECTURES, is_external
from trt_cls.spec.experiment import ModelConfig

pytest.importorskip("onnxruntime")

SHAPE = (3, 64, 64)
PREPROCESSING = Preprocessing(*SHAPE, "none", "bilinear", "rgb", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLASSES = tuple("abcdefghij")
HALF = Criteria(threshold=0.5)
MODELS = [
    *((family.name, depth or 18) for family in ARCHITECTURES.values() for depth in family.depths or (None,)),
    *((arch, 18) for arch in ("torchvision/resnet18", "torchvision/shufflenet_v2_x0_5", "timm/mobilenetv3_small_050")),
]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """Three photographs of each class."""
    root = tmp_path_factory.mktemp("cifar10")
    for folder in sorted((cifar10() / "test").iterdir()):
        (root / folder.name).mkdir()
        for path in sorted(folder.iterdir())[:3]:
            shutil.copy(path, root / folder.name)
    return image_folder(root)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "depth"), MODELS, ids=[f"{arch}-{depth}" for arch, depth in MODELS])
def test_pruned_at_half_it_goes_all_the_way(arch: str, depth: int, pictures: ImageFolder, tmp_path: Path) -> None:
    model = ModelConfig(arch=arch, n_layers=depth, input_image_size="3,64,64", use_batch_norm=not is_external(arch))
    contract = Contract(model, PREPROCESSING, CLASSES)
    whole, source = tmp_path / "whole.safetensors", tmp_path / "pruned.safetensors"
    torch.manual_seed(0)
    module = build(model, len(CLASSES))
    save_checkpoint(whole, module if is_external(arch) else fill(module), contract)
    module = prune_network(load_checkpoint(whole).module, SHAPE, HALF).module
    (batch,) = stream(pictures.samples, PREPROCESSING, batch_size=len(pictures.samples), workers=1)
    images = torch.from_numpy(batch.images)
    save_checkpoint(source, calibrate(module, images), contract)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(source).module(images), module(images))
    builder = "tensorrt-rtx" if find_spec("tensorrt_rtx") else "none"
    for precision in ("fp32", "fp16"):
        result = export(
            source, tmp_path / f"{precision}.onnx", precision=precision, images=pictures.root, builder=builder
        )
        assert result.parity is not None
        assert result.parity.top1_agreement == 1
        assert (result.engine is not None) == (builder == "tensorrt-rtx")
