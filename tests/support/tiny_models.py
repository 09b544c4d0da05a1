"""Models small enough to be right by hand: the class is the strongest color of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from trt_cls.contract import METADATA_KEY, Contract, Preprocessing
from trt_cls.spec.experiment import ModelConfig

SIZE = 16
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
RGB = Preprocessing(
    channels=3, height=SIZE, width=SIZE, crop="none", filter="bilinear", channel_order="rgb", divisor=255.0,
    mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
)  # fmt: skip
CONTRACT = Contract(
    model=ModelConfig(arch="resnet", n_layers=10, input_image_size=f"3,{SIZE},{SIZE}"),
    preprocessing=RGB,
    classes=tuple(COLORS),
)


def write_onnx(path: Path, contract: Contract | None = CONTRACT, gain: float = 4.0, channels: int = 3) -> Path:
    """softmax(gain · mean of each channel), or the sigmoid; with a NaN gain all answers are NaN."""
    last = "Sigmoid" if contract and contract.task == "multi" else "Softmax"
    weight = numpy_helper.from_array(np.float32(gain) * np.eye(channels, 3, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("GlobalAveragePool", ["input_1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node(last, ["logits"], ["predictions"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["N", channels, SIZE, SIZE])],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["N", 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if contract:
        helper.set_model_props(model, {"other": "text", METADATA_KEY: contract.to_json()})
    onnx.save(model, path)
    return path


def probabilities(color: tuple[int, int, int], gain: float = 4.0) -> list[float]:
    """What the model answers for an image of one color."""
    powers = np.exp(gain * np.array(color) / 255)
    return list(powers / powers.sum())


def write_images(folder: Path, per_class: int, size: int = SIZE) -> Path:
    """`per_class` images of each color, one sub-folder a class."""
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            Image.new("RGB", (size, size), color).save(folder / name / f"{number}.png")
    return folder
