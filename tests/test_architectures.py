"""Every kind of architecture goes all the way: learns, is exported in all three precisions, becomes an engine."""

from __future__ import annotations

import shutil
from collections import Counter
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
import pytest

from support.operators import wanted_operators
from support.shared_data import cifar10
from trt_cls.contract import Contract
from trt_cls.data.folder import ImageFolder, image_folder
from trt_cls.preprocessing.description import preprocessing_from_spec
from trt_cls.spec.architectures import ARCHITECTURES
from trt_cls.spec.experiment import (
    Activation,
    CosineLr,
    Experiment,
    LrConfig,
    ModelConfig,
    Optimizer,
    RegConfig,
    Sgd,
    TrainConfig,
)

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

STEPS, BATCH = 2, 8


def network(arch: str, n_layers: int | None = None, *, use_batch_norm: bool = True, **options: Any) -> ModelConfig:
    return ModelConfig(
        arch=arch,
        n_layers=n_layers or 18,
        input_image_size="3,64,64",
        use_batch_norm=use_batch_norm,
        **options,
    )


def label(model: ModelConfig) -> str:
    depth = str(model.n_layers) if ARCHITECTURES[model.arch].depths else ""
    usual = vars(network(model.arch, model.n_layers))
    return "-".join([model.arch + depth, *(name for name, value in vars(model).items() if value != usual[name])])


ALL = [network(family.name, depth) for family in ARCHITECTURES.values() for depth in family.depths or (None,)]
BUILT_THRICE = {("resnet", 10), ("squeezenet", 18)}
"""Additions and concatenations: an engine of each precision. Others get one in INT8, with the rest in FP16."""
NARROW = {
    "resnet", "vgg", "alexnet", "googlenet", "mobilenet_v1", "squeezenet", "darknet", "cspdarknet", "cspdarknet_tiny",
}  # fmt: skip
"""With a quarter of the filters, for speed. Of MobileNet v2 and EfficientNet-B0 that is too few: INT8 changes the label
of 5 to 12 of the 30 pictures."""
COUNTED = {("resnet", 18), ("vgg", 19), ("darknet", 19), ("cspdarknet", 19)}
"""Made of the blocks of another one of the family: they are exported in FP32, untrained, and their graphs counted.

A variant of both that have 19 layers goes all the way.
"""
DEEPER = {*(("resnet", depth) for depth in (34, 101, 152)), *((f"efficientnet_b{size}", 18) for size in range(1, 8))}
"""Made of the blocks of the ones before them, in other numbers and widths: their graphs follow from their layers."""
WHOLE_WAY = [model for model in ALL if (model.arch, model.n_layers) not in DEEPER | COUNTED]
VARIANTS = [
    network("resnet", 10, use_batch_norm=False, use_bias=True),
    network("resnet", 18, use_pooling=True, retain_head=True),
    network("resnet", 18, all_projections=True, activation=Activation(activation_type="swish")),
    network("vgg", 16, use_pooling=True, retain_head=True, dropout=0.5),
    network("alexnet", retain_head=True),
    network("googlenet", retain_head=True),
    network("mobilenet_v1", retain_head=True),
    network("mobilenet_v2", all_projections=True, use_bias=True, retain_head=True),
    network("squeezenet", retain_head=True, dropout=0.3),
    network("darknet", 19, use_batch_norm=False, retain_head=True),
    network("cspdarknet", 19, activation=Activation(activation_type="mish")),
    network("cspdarknet_tiny", activation=Activation(activation_type="relu"), retain_head=True),
    network("efficientnet_b0", use_bias=True, activation=Activation(activation_type="relu")),
]


def experiment(model: ModelConfig) -> Experiment:
    train = TrainConfig(
        train_dataset_path="",
        val_dataset_path="",
        batch_size_per_gpu=BATCH,
        n_workers=0,
        preprocess_mode="torch",
        optimizer=Optimizer(sgd=Sgd()),
        reg_config=RegConfig(type="L2", weight_decay=1e-4),
        lr_config=LrConfig(cosine=CosineLr(learning_rate=0.01)),
    )
    return Experiment(model_config=model, train_config=train)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of every family with a quarter of the filters: the graph is the same, its products are a sixteenth.

    Their files are read as those of pruned ones. What excites must have as many filters as what it multiplies.
    """
    from trt_cls.models.builder import Builder

    conv, dense = Builder.conv, Builder.dense

    def fewer(net: Builder, x: Any, name: str, filters: int, *given: Any, **options: Any) -> Any:
        cut = filters >= 16 and "_se_" not in name and "groups" not in options
        return conv(net, x, name, filters // 4 if cut else filters, *given, **options)

    monkeypatch.setattr(Builder, "conv", fewer)
    monkeypatch.setattr(
        Builder, "dense", lambda net, x, name, units: dense(net, x, name, units // 4 if units >= 1000 else units)
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """Three photographs of each class."""
    root = tmp_path_factory.mktemp("cifar10")
    for folder in sorted((cifar10() / "test").iterdir()):
        (root / folder.name).mkdir()
        for path in sorted(folder.iterdir())[:3]:
            shutil.copy(path, root / folder.name)
    return image_folder(root)


def trained(asked: Experiment, pictures: ImageFolder) -> Any:
    """The network after two steps of the trainer, and some more, so that it answers these pictures."""
    import torch

    from support.calibration import train_on
    from trt_cls.data.loader import TrainingLoader
    from trt_cls.data.stream import stream
    from trt_cls.models import build
    from trt_cls.training.compute import choose_compute
    from trt_cls.training.learner import Learner

    torch.manual_seed(0)
    module = build(asked.model_config, len(pictures.classes))
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    preprocessing = preprocessing_from_spec(asked, "train")
    learner = Learner(module, asked.train_config, choose_compute("cpu", "fp32"))
    batches = TrainingLoader(pictures, preprocessing, asked.train_config).epoch(1)
    for number, batch in enumerate(islice(batches, STEPS)):
        learner.step(batch, number, rate=0.01)
    assert learner.metrics().images == STEPS * BATCH
    assert learner.metrics().loss < 100
    kernels = {name: weight for name, weight in module.named_parameters() if weight.dim() > 1}
    assert not [name for name, weight in kernels.items() if torch.equal(weight, before[name])]
    (batch,) = stream(pictures.samples, preprocessing, batch_size=30, workers=1)
    return train_on(module, torch.from_numpy(batch.images), torch.tensor([sample.label for sample in batch.samples]))


@pytest.mark.slow
@pytest.mark.parametrize("model", [*WHOLE_WAY, *VARIANTS], ids=label)
def test_learns_and_is_exported(
    model: ModelConfig,
    pictures: ImageFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    import torch

    from support.calibration import judge_int8
    from support.optimized import integer_kernels, optimized
    from support.trained_layers import assert_layers_find_their_nodes
    from trt_cls.export.export import export
    from trt_cls.export.int8 import Int8
    from trt_cls.export.parity import BOUNDS
    from trt_cls.export.sample_images import images_for
    from trt_cls.models.checkpoint import load_checkpoint, save_checkpoint

    if model.arch in NARROW:
        request.getfixturevalue("narrow")
    judge_int8(model, monkeypatch)
    asked = experiment(model)
    contract = Contract(model, preprocessing_from_spec(asked, "train"), pictures.classes)
    save_checkpoint(tmp_path / "model.safetensors", trained(asked, pictures), contract)
    engines = find_spec("tensorrt_rtx") is not None
    # INT8 keeps the rest in FP16: of a variant the file in FP16 is none of its own
    halves = () if model in VARIANTS else (("fp16", "fp32.onnx"),)
    for precision, source in (("fp32", "model.safetensors"), *halves, ("int8", "fp32.onnx")):
        builds = engines and (precision == "int8" or (model.arch, model.n_layers) in BUILT_THRICE)
        result = export(
            tmp_path / source,
            tmp_path / f"{precision}.onnx",
            precision=precision,
            int8=Int8(images=pictures.root, batches=2),
            images=pictures.root,
            builder="tensorrt-rtx" if builds else "none",
        )
        assert result.parity is not None
        assert result.parity.top1_agreement >= (BOUNDS["int8"].top1_agreement if precision == "int8" else 1)
        assert (result.engine is not None) == builds
    fp32, int8 = (operators(tmp_path / f"{name}.onnx") for name in ("fp32", "int8"))
    fp16 = fp32 + Counter({"Cast": 2})
    assert not halves or fp16 == operators(tmp_path / "fp16.onnx")
    biases = int8["Add"] - fp16["Add"]  # that are added after a layer in INT8 instead of in it
    assert 0 <= biases <= fp32["Conv"] + fp32["Gemm"]
    pairs = Counter(QuantizeLinear=int8["QuantizeLinear"], DequantizeLinear=int8["DequantizeLinear"])
    assert int8 - pairs - Counter(Add=biases) == fp16
    assert int8["DequantizeLinear"] == int8["QuantizeLinear"] > fp32["Conv"] + fp32["Gemm"]
    assert integer_kernels(optimized(tmp_path / "int8.onnx")) == set(), "they saturate on processors without VNNI"
    if model in ALL:
        images = images_for(contract.preprocessing, pictures.root, 8)
        network, (first, *_) = load_checkpoint(tmp_path / "model.safetensors").module, images.batches()
        assert fp32 == wanted_operators(network)
        assert_layers_find_their_nodes(network, torch.from_numpy(first), onnx.load(tmp_path / "fp32.onnx"))
    assert not fp32.keys() & {"BatchNormalization", "Cast", "Identity", "Pad", "Shape", "Transpose"}
    assert fp32["Reshape"] == (1 if flattens(model) else 0)


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("model", [model for model in ALL if (model.arch, model.n_layers) in COUNTED], ids=label)
def test_other_depths_are_exported(model: ModelConfig, pictures: ImageFolder, tmp_path: Path) -> None:
    import torch

    from support.calibration import calibrate
    from trt_cls.data.stream import stream
    from trt_cls.export.export import export
    from trt_cls.models import build
    from trt_cls.models.checkpoint import save_checkpoint

    torch.manual_seed(0)
    preprocessing = preprocessing_from_spec(experiment(model), "train")
    (batch,) = stream(pictures.samples, preprocessing, batch_size=30, workers=1)
    module = calibrate(build(model, len(pictures.classes)), torch.from_numpy(batch.images))
    save_checkpoint(tmp_path / "model.safetensors", module, Contract(model, preprocessing, pictures.classes))
    result = export(tmp_path / "model.safetensors", tmp_path / "fp32.onnx", images=pictures.root, builder="none")
    assert result.parity is not None
    assert result.parity.top1_agreement == 1
    assert operators(tmp_path / "fp32.onnx") == wanted_operators(module)


def flattens(model: ModelConfig) -> bool:
    """Whether a map, not its mean, goes into a dense layer."""
    return model.retain_head and not model.arch.startswith(("squeezenet", "darknet", "cspdarknet", "efficientnet"))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)
