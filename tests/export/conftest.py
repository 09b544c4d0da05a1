from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trt_cls.contract import Contract, Preprocessing
from trt_cls.spec.experiment import ModelConfig

if TYPE_CHECKING:
    import onnx

    from trt_cls.models.network import Network

CLASSES = ("bird", "cat", "dog", "frog", "ship")


@pytest.fixture(scope="session")
def contract() -> Contract:
    model = ModelConfig(arch="resnet", n_layers=10, input_image_size="3,32,32", use_batch_norm=True)
    preprocessing = Preprocessing(
        3, 32, 32, "none", "bilinear", "bgr", divisor=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0)
    )
    return Contract(model, preprocessing, CLASSES)


@pytest.fixture(scope="session")
def network(contract: Contract) -> Network:
    """resnet10 whose batch normalization does something and whose answers depend on the image.

    It has a quarter of the filters, as after pruning: what is tested with it is not the size of its weights.
    """
    torch = pytest.importorskip("torch")
    from trt_cls.models import build
    from trt_cls.models.checkpoint import widths

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    with torch.device("meta"):
        whole = widths(build(contract.model, len(CLASSES)).state_dict())
    narrow = {name: filters if name == "predictions" else filters // 4 for name, filters in whole.items()}
    module = build(contract.model, len(CLASSES), narrow).eval()
    with torch.no_grad():
        for name, values in module.state_dict().items():
            if name.endswith("running_mean"):
                values.normal_(0, 0.2, generator=generator)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 2, generator=generator)
        # pixels of the mean's scale would saturate the softmax, and most be of one class
        weight, bias = list(module.parameters())[-2:]
        colors = 180 * torch.rand(64, 3, 1, 1, generator=generator)
        logits = module(colors + 77 * torch.rand(64, 3, 32, 32, generator=generator) - 115)
        weight.div_(logits.std(0).mean())
        bias.copy_(-(logits - bias).mean(0) / logits.std(0).mean())
    return module


@pytest.fixture(scope="session")
def checkpoint(network: Network, contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trt_cls.models.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "resnet_001.safetensors"
    save_checkpoint(path, network, contract)
    return path


@pytest.fixture(scope="session")
def fp32(network: Network, contract: Contract) -> onnx.ModelProto:
    from trt_cls.export.torch_to_onnx import onnx_from_module

    return onnx_from_module(network, contract).proto


@pytest.fixture(scope="session")
def fp16(fp32: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    from trt_cls.artefacts.onnx_file import OnnxModel
    from trt_cls.export.fp16 import fp16_from_fp32

    return fp16_from_fp32(OnnxModel(fp32, contract)).proto


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 noisy images of one color each, in the class folders."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(12):
        target = folder / CLASSES[index % len(CLASSES)]
        target.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, 3) * 0.7 + generator.integers(0, 77, (40, 48, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(target / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def labeled(checkpoint: Path, contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty images, each of a class drawn from the network's answers, which are too unsure, at temperature 1/4."""
    import numpy as np
    from PIL import Image

    from trt_cls.engines import open_engine
    from trt_cls.evaluation.temperature import softened
    from trt_cls.export.sample_images import images_for

    root, random = tmp_path_factory.mktemp("labeled"), np.random.default_rng(5)
    for number in range(80):
        pixels = random.integers(0, 256, 3) * 0.7 + random.integers(0, 77, (32, 32, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number:02}.png")
    engine = open_engine(checkpoint, "cpu")
    batches = images_for(contract.preprocessing, root).batches()
    answers = softened(np.concatenate([engine.infer(batch) for batch in batches]), 0.25).astype(np.float64)
    for path, row in zip(sorted(root.iterdir()), answers, strict=True):
        name = contract.classes[random.choice(len(row), p=row / row.sum())]
        (root / name).mkdir(exist_ok=True)
        path.rename(root / name / path.name)
    return root
