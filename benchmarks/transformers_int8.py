"""What INT8 is worth in transformers and ConvNeXt: share of 8 bits, noise, labels, plans; in ONNX Runtime and OpenVINO.

Each network is trained for its few epochs on a part of --data (folders train and test), or taken from -r where an
earlier call trained it, exported in FP32 and INT8, calibrated on its training images, and run on test images. Noise is
that of the logits against FP32 in ONNX Runtime, each image's mean removed; "clear" images are those whose two likeliest
classes are further apart in FP32 than twice its root mean square. Rows go to results/transformers_int8.csv; a network
that was not run has a row that says so. Usage: python benchmarks/transformers_int8.py --data DATA -r DIR [NETWORK...]
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _results import RESULTS, about, write

from trt_cls.artefacts.model_file import read_contract
from trt_cls.contract import Precision
from trt_cls.data.folder import Sample, image_folder
from trt_cls.engines import open_engine
from trt_cls.engines.backends import Provider
from trt_cls.engines.inspection import inspect
from trt_cls.errors import TrtClsError, one_line
from trt_cls.evaluation.evaluate import predict
from trt_cls.evaluation.metrics import Probabilities, mcnemar
from trt_cls.export.export import export
from trt_cls.export.int8 import Int8
from trt_cls.export.tensorrt import DEFAULT_PROFILE, choose_builder, plan_from_onnx
from trt_cls.models.int8_ranges import decibels
from trt_cls.spec import loads
from trt_cls.training.run import train

NAME = "transformers_int8"
NETWORKS: dict[str, tuple[int, int, int]] = {
    "timm/vit_tiny_patch16_224": (64, 2, 200),
    "timm/deit_tiny_patch16_224": (64, 2, 200),
    "timm/swin_tiny_patch4_window7_224": (32, 2, 200),
    "timm/convnext_atto": (64, 2, 200),
    "torchvision/swin_t": (32, 1, 40),
    "torchvision/vit_b_16": (32, 2, 40),
}
"""Edge of the images, epochs of training, and training images of each class."""
TESTED = 50
"""Test images of each class: the figures are about INT8, and not about accuracy."""
CLEAR = 2.0
"""Times the noise."""
FIGURES = (
    "network", "size", "epochs", "training_images", "precision", "engine", "top1", "share_of_8_bits",
    "signal_to_noise_db", "agreement_of_clear", "clear_images", "agreement_of_all", "mcnemar_p", "layers_inspected",
    "plan_mb",
)  # fmt: skip
SPEC = """
model_config {{ arch: "{arch}" input_image_size: "3,{size},{size}" }}
train_config {{
  train_dataset_path: "{data}/train"  val_dataset_path: "{data}/test"
  batch_size_per_gpu: 64  n_epochs: {epochs}  n_workers: 1  random_seed: 7  preprocess_mode: "torch"
  enable_random_crop: false  enable_center_crop: false  enable_color_augmentation: false  mixup_alpha: 0.0
  optimizer {{ sgd {{ }} }}  reg_config {{ type: "None" }}  lr_config {{ cosine {{ learning_rate: 0.0005 }} }}
}}
eval_config {{ eval_dataset_path: "{data}/test"  enable_center_crop: false }}
extensions {{ optimizer {{ adamw {{ }} }} warm_up_steps: 20 clip_grad_norm: 1.0 }}
"""


def part_of(data: Path, results: Path, training: int) -> Path:
    """A copy of the first images of each class."""
    folder = results / f"{training}_of_each"
    for part, count in (("train", training), ("test", TESTED)):
        for source in sorted((data / part).iterdir()):
            target = folder / part / source.name
            if not target.exists():
                target.mkdir(parents=True)
                for path in sorted(source.iterdir())[:count]:
                    shutil.copy(path, target)
    return folder


def checkpoint_of(arch: str, data: Path, folder: Path) -> Path:
    """The trained network."""
    size, epochs, _ = NETWORKS[arch]
    weights = folder / "weights" / "best.safetensors"
    if not weights.exists():
        spec = SPEC.format(arch=arch, size=size, data=data, epochs=epochs)
        train(loads(spec), folder, device="cpu", precision="fp32")
    return weights


def answers(path: Path, provider: Provider, images: Sequence[Sample]) -> Probabilities:
    with closing(open_engine(path, provider)) as engine:
        return predict(engine, images, batch_size=32, workers=1).probabilities


def measured(exact: Probabilities, found: Probabilities, labels: Any) -> dict[str, Any]:
    """The figures of `found` against `exact`. The logarithms of probabilities are logits but for each image's mean."""
    logits, other = (np.log(np.maximum(side, 1e-30)) for side in (exact, found))
    noise = other - logits
    noise -= noise.mean(axis=1, keepdims=True)
    ranked = np.sort(logits, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > CLEAR * float(np.sqrt(np.square(noise).mean()))
    same = exact.argmax(1) == found.argmax(1)
    right, own = exact.argmax(1) == labels, found.argmax(1) == labels
    p_value = mcnemar(int((right & ~own).sum()), int((own & ~right).sum()))
    return {
        "top1": f"{100 * own.mean():.2f}",
        "signal_to_noise_db": f"{decibels(logits, noise):.1f}",
        "agreement_of_clear": f"{100 * same[clear].mean():.2f}",
        "clear_images": int(clear.sum()),
        "agreement_of_all": f"{100 * same.mean():.2f}",
        "mcnemar_p": f"{p_value:.3g}",
    }


def plan_size(path: Path) -> str:
    try:
        choice, _ = choose_builder("tensorrt-rtx", required=True)
        assert choice
        return f"{len(plan_from_onnx(path, inspect(path).contract, choice, DEFAULT_PROFILE)) / 1e6:.1f}"
    except TrtClsError as error:
        return f"not built: {one_line(error)}"


def measure(arch: str, data: Path, results: Path) -> list[dict[str, Any]]:
    """A row for FP32, and for each other file and engine."""
    size, epochs, training = NETWORKS[arch]
    data = part_of(data, results.resolve(), training)
    folder = results / arch.replace("/", "_")
    checkpoint = checkpoint_of(arch, data, folder)
    wanted: tuple[Precision, ...] = ("fp32", "int8", "fp16") if arch == "torchvision/swin_t" else ("fp32", "int8")
    images = image_folder(data / "test", read_contract(checkpoint).classes).samples
    labels = np.array([sample.label for sample in images])
    rows: list[dict[str, Any]] = []
    exact: Probabilities | None = None
    for precision in wanted:
        path = folder / f"{precision}.onnx"
        row = {"network": arch, "size": size, "epochs": epochs, "precision": precision, "images": len(labels)}
        row["training_images"] = training * len(read_contract(checkpoint).classes)
        try:
            if not path.exists():
                calibration = Int8(data / "train") if precision == "int8" else Int8()
                export(checkpoint, path, precision=precision, int8=calibration, images=data / "test", builder="none")
        except TrtClsError as error:
            rows.append({**row, "engine": f"refused: {one_line(error)}"})
            continue
        seen = inspect(path)
        share = seen.contract.eight_bits
        row |= {
            "share_of_8_bits": "" if share is None else f"{100 * share:.1f}",
            "layers_inspected": len(seen.layers),
            "plan_mb": plan_size(path),
        }
        providers: list[Provider] = ["cpu"]
        if precision == "int8" and find_spec("openvino"):
            providers.append("openvino")
        for provider in providers:
            found = answers(path, provider, images)
            exact = found if exact is None else exact
            rows.append({**row, "engine": provider, **measured(exact, found, labels)})
            print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--data", type=Path, required=True, help="folder of train and test, a folder a class in each")
    parser.add_argument("-r", "--results", type=Path, required=True, help="folder for checkpoints and files")
    given = parser.parse_args()
    machine = about(("torch", "torchvision", "timm", "onnxruntime", "openvino", "tensorrt-rtx-cu13"))
    path, columns = RESULTS / f"{NAME}.csv", dict.fromkeys((*FIGURES, "images", *machine), "")
    rows = {arch: [{"network": arch, "engine": "not run"}] for arch in NETWORKS}
    for row in csv.DictReader(path.open()) if path.exists() else ():
        rows[row["network"]] = [*(one for one in rows[row["network"]] if one["engine"] != "not run"), row]
    for arch in given.networks or NETWORKS:
        rows[arch] = [{**row, **machine} for row in measure(arch, given.data, given.results)]
        write(NAME, [{**columns, **row} for of_one in rows.values() for row in of_one])
    return 0


if __name__ == "__main__":
    sys.exit(main())
