"""A network of every family, pruned at half, comes back from its file; those of each kind go to ONNX and an engine.

That deeper ones are pruned to the same answers, `test_trace` holds. `test_architectures` exports every family, most
with fewer filters, which are read from a file as those of a pruned network are.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from support.calibration import judge_int8, train_on
from support.reference_weights import fill
from support.shared_data import cifar10
from trt_cls.contract import Contract, Preprocessing
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.data.stream import stream
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8
from trt_cls.export.parity import BOUNDS
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
    *(
        (family.name, min(family.depths, default=18))
        for family in ARCHITECTURES.values()
        if not family.name.startswith("efficientnet") or family.name == "efficientnet_b0"
    ),
    *((arch, 18) for arch in ("torchvision/resnet18", "torchvision/shufflenet_v2_x0_5", "timm/mobilenetv3_small_050")),
]

FILE_ALONE = {"vgg", "alexnet", "googlenet", "mobilenet_v1", "darknet", "cspdarknet"}
"""Of the same operations as others: with fewer filters, `test_architectures` has them go all the way."""


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
def test_pruned_at_half_it_goes_all_the_way(
    arch: str, depth: int, pictures: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(arch=arch, n_layers=depth, input_image_size="3,64,64", use_batch_norm=not is_external(arch))
    judge_int8(model, monkeypatch)
    contract = Contract(model, PREPROCESSING, CLASSES)
    whole, source = tmp_path / "whole.safetensors", tmp_path / "pruned.safetensors"
    torch.manual_seed(0)
    module = build(model, len(CLASSES))
    save_checkpoint(whole, module if is_external(arch) else fill(module), contract)
    module = prune_network(load_checkpoint(whole).module, SHAPE, HALF).module
    (batch,) = stream(pictures.samples, PREPROCESSING, batch_size=len(pictures.samples), workers=1)
    images = torch.from_numpy(batch.images)
    if arch not in FILE_ALONE:
        module = train_on(module, images, torch.tensor([sample.label for sample in batch.samples]))
    save_checkpoint(source, module, contract)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(source).module(images), module(images))
    if arch in FILE_ALONE:
        return
    engines = find_spec("tensorrt_rtx") is not None
    fp32 = tmp_path / "fp32.onnx"
    for precision, start in (("fp32", source), ("fp16", fp32), ("int8", fp32)):
        builds = engines and precision == "int8"
        result = export(
            start,
            tmp_path / f"{precision}.onnx",
            precision=precision,
            int8=Int8(images=pictures.root, batches=2),
            images=pictures.root,
            builder="tensorrt-rtx" if builds else "none",
        )
        assert result.parity is not None
        assert result.parity.top1_agreement >= (BOUNDS["int8"].top1_agreement if precision == "int8" else 1)
        assert (result.engine is not None) == builds
